use clap::Args;

use super::bytes;
use crate::api;
use crate::cli::Failure;

/// What is in its file tree beside the image.
#[derive(Args)]
pub(super) struct FileFlags {
    /// Make the root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Mount a memory file system, as in /run:size=64m,mode=755.
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Size of /dev/shm; 64m where absent.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    shm_size: Option<u64>,
    /// Give a device of the host.
    #[arg(long, value_name = "SOURCE[:TARGET][:rwm]")]
    device: Vec<String>,
    /// Change a kernel setting of the container's own namespaces, as in net.ipv4.ip_forward=1.
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Add a line to /etc/hosts.
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Name server in /etc/resolv.conf; the host's where absent.
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Search domain in /etc/resolv.conf.
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option in /etc/resolv.conf.
    #[arg(long, value_name = "OPTION", alias = "dns-opt")]
    dns_option: Vec<String>,
}

impl FileFlags {
    pub(super) fn apply(self, request: &mut api::CreateRequest) -> Result<(), Failure> {
        request.read_only = self.read_only;
        request.tmpfs = self.tmpfs;
        request.shm_bytes = self.shm_size.unwrap_or(0);
        request.devices = self.device;
        request.sysctls = self.sysctl;
        request.hosts = self.add_host;
        request.dns = self.dns;
        request.dns_search = self.dns_search;
        request.dns_options = self.dns_option;
        Ok(())
    }
}
