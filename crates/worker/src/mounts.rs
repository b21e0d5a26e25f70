//! Mounts between the API's messages and checked values, either way.

use beta9_types::{
    BindMount, Consistency, Missing, MountAccess, MountLimits, MountOrigin, MountRequest, Propagation,
    VolumeContent,
};

use crate::api;
use crate::error::Result;

impl From<MountRequest> for api::Mount {
    fn from(request: MountRequest) -> Self {
        use api::mount::Type;
        let MountRequest { origin, target, access, limits, consistency, propagation } = request;
        let mount = Self {
            target: target.to_string_lossy().into_owned(),
            read_only: access == MountAccess::ReadOnly,
            ..facts(limits, consistency, propagation)
        };
        match origin {
            MountOrigin::Host { path, missing } => Self {
                source: path.to_string_lossy().into_owned(),
                create_source: missing == Missing::Create,
                ..mount
            },
            MountOrigin::Volume { name, content, labels } => Self {
                r#type: Type::Volume.into(),
                source: name.map(String::from).unwrap_or_default(),
                no_copy: content == VolumeContent::Nothing,
                labels: labels.into_iter().collect(),
                ..mount
            },
        }
    }
}

impl From<&BindMount> for api::Mount {
    fn from(mount: &BindMount) -> Self {
        use api::mount::Type;
        let kind = if mount.volume.is_some() { Type::Volume } else { Type::Bind };
        Self {
            r#type: kind.into(),
            source: mount.source.to_string_lossy().into_owned(),
            target: mount.target.to_string_lossy().into_owned(),
            read_only: mount.access == MountAccess::ReadOnly,
            volume: mount.volume.as_ref().map(|volume| volume.name.to_string()).unwrap_or_default(),
            ..facts(mount.limits, mount.consistency, mount.propagation)
        }
    }
}

fn facts(limits: MountLimits, consistency: Option<Consistency>, propagation: Propagation) -> api::Mount {
    api::Mount {
        nosuid: limits.nosuid,
        nodev: limits.nodev,
        noexec: limits.noexec,
        propagation: propagation.as_str().to_owned(),
        consistency: consistency.map(|consistency| consistency.as_str().to_owned()).unwrap_or_default(),
        ..api::Mount::default()
    }
}

/// Checks every value by its own rule.
pub(crate) fn request(mount: api::Mount) -> Result<MountRequest> {
    let origin = match mount.r#type() {
        api::mount::Type::Bind => MountOrigin::Host {
            path: mount.source.into(),
            missing: if mount.create_source { Missing::Create } else { Missing::Refuse },
        },
        api::mount::Type::Volume => MountOrigin::Volume {
            name: Some(mount.source).filter(|name| !name.is_empty()).map(|name| name.parse()).transpose()?,
            content: if mount.no_copy { VolumeContent::Nothing } else { VolumeContent::Image },
            labels: mount.labels.into_iter().collect(),
        },
    };
    let access = if mount.read_only { MountAccess::ReadOnly } else { MountAccess::ReadWrite };
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(MountRequest {
        limits: MountLimits { nosuid: mount.nosuid, nodev: mount.nodev, noexec: mount.noexec },
        consistency: given(mount.consistency).map(|text| text.parse()).transpose()?,
        propagation: given(mount.propagation).map_or(Ok(Propagation::default()), |text| text.parse())?,
        ..MountRequest::new(origin, mount.target.into(), access)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_arrives() {
        for text in ["/a:/b", "/a:/b:ro,nosuid,noexec,cached,rslave", "cache:/b:nocopy", "/b"] {
            let asked = MountRequest::parse_volume(text).unwrap();
            assert_eq!(request(asked.clone().into()).unwrap(), asked, "{text}");
        }
        for bad in [
            api::Mount { source: "a".into(), target: "/b".into(), ..Default::default() },
            api::Mount { source: "/a".into(), target: "/".into(), ..Default::default() },
            api::Mount {
                source: "/a".into(),
                target: "/b".into(),
                propagation: "x".into(),
                ..Default::default()
            },
            api::Mount { source: "/a".into(), target: "/b".into(), r#type: 1, ..Default::default() },
        ] {
            assert!(request(bad.clone()).is_err(), "{bad:?} was accepted");
        }
    }
}
