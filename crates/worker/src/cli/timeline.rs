//! A container's start, drawn: what took how long, beside each other on one scale.

use crate::api;

/// Columns of the bars.
const WIDTH: u64 = 40;

/// What the time before a phase went to.
fn spent_on(phase: &str) -> &'static str {
    match phase {
        "requested" => "the request is taken in",
        "supervisor_started" => "image, spec, record; the supervisor starts",
        "rootfs_ready" => "root file system, cgroup",
        "network_ready" => "the network is connected",
        "engine_started" => "the engine starts",
        "guest_kernel" => "firmware; the kernel is loaded",
        "guest_init" => "the guest's kernel boots",
        "guest_ready" => "the guest's init dials the host",
        "guest_mounted" => "disks are mounted in the guest",
        "created" => "everything else of the container",
        "running" => "its program is executed",
        "exited" => "its program ran",
        "engine_ended" => "the guest writes what is left, its engine ends",
        "cleaned" => "everything is given back",
        _ => "",
    }
}

/// One line per phase, from the request to the end, with bars on one scale up to `running`.
pub(super) fn draw(container: &api::Container) -> String {
    let start = container.created_us;
    // What comes after `running` is the container's own time and would flatten everything before it.
    let started: Vec<_> = container.timeline.iter().take_while(|phase| phase.name != "exited").collect();
    let end = started.last().map_or(start, |phase| phase.at_us);
    let span = end.saturating_sub(start).max(1);
    let mut lines = vec![format!("{}  {}  {}", container.id, container.runtime, container.image)];
    let mut before = start;
    for phase in &container.timeline {
        let at = phase.at_us.max(before);
        let bar = if at <= end { bar(before - start, at - start, span) } else { String::new() };
        lines.push(format!(
            "  {:<19}{:>10}{:>10}  {bar:<width$}  {}",
            phase.name,
            ms(at - start),
            format!("+{}", ms(at - before)),
            spent_on(&phase.name),
            width = WIDTH as usize,
        ));
        before = at;
    }
    lines.push(format!("  request to running {:>9} ms", ms(span)));
    lines.join("\n")
}

fn ms(microseconds: u64) -> String {
    format!("{:.1}", microseconds as f64 / 1000.0)
}

/// A bar from one point to another of `span`, to an eighth of a column at its end.
fn bar(from: u64, to: u64, span: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let place = |at: u64| u128::from(at.min(span)) * u128::from(WIDTH) * 8 / u128::from(span);
    let column = |eighths: u128| usize::try_from(eighths).unwrap_or(0);
    let (from, to) = (place(from) / 8 * 8, place(to));
    let length = column(to - from).max(1);
    // Its beginning is rounded down, so that bars touch.
    let pad = column(from / 8).min(WIDTH as usize - 1);
    format!("{}{}{}", " ".repeat(pad), "█".repeat(length / 8), EIGHTHS[length % 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_drawn_to_scale() {
        let phases = [
            ("requested", 200),
            ("supervisor_started", 20_000),
            ("rootfs_ready", 22_300),
            ("engine_started", 60_000),
            ("guest_kernel", 400_000),
            ("guest_init", 800_000),
            ("guest_ready", 830_000),
            ("guest_mounted", 850_000),
            ("created", 900_000),
            ("running", 1_000_000),
            ("exited", 5_000_000),
            ("cleaned", 5_020_000),
        ];
        let timeline = phases.map(|(name, at_us)| api::Phase { name: name.into(), at_us: 7_000_000 + at_us });
        let container = api::Container {
            id: "c1".into(),
            runtime: "qemu".into(),
            image: "debian".into(),
            created_us: 7_000_000,
            timeline: timeline.to_vec(),
            ..Default::default()
        };
        insta::assert_snapshot!(draw(&container));
    }

    #[test]
    fn times_that_make_no_sense_are_drawn_all_the_same() {
        let timeline = [("requested", 0), ("running", u64::MAX), ("cleaned", 3)]
            .map(|(name, at_us)| api::Phase { name: name.into(), at_us });
        let container = api::Container { created_us: 5, timeline: timeline.to_vec(), ..Default::default() };
        assert_eq!(draw(&container).lines().count(), 5);
        assert_eq!(draw(&api::Container::default()).lines().count(), 2);
    }
}
