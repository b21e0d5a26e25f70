use super::*;

fn follow_all(events: Vec<Event>) -> Result<ExitCode> {
    let (sender, inbox) = channel();
    for event in events {
        sender.send(event).unwrap();
    }
    drop(sender);
    follow(&inbox, Duration::from_millis(50))
}

fn shown(outcome: Result<ExitCode>) -> String {
    outcome.map_or_else(|error| error.to_string(), |code| format!("{code:?}"))
}

#[test]
fn a_code_counts_when_both_streams_are_drained() {
    let ended = || Event::MachineEnded(String::new());
    let seven = format!("{:?}", ExitCode::from(7));
    assert_eq!(
        shown(follow_all(vec![Event::Ready, Event::Exit(7), Event::Drained, ended(), Event::Drained])),
        seven
    );
    // The end of the machine overtakes its report.
    assert_eq!(
        shown(follow_all(vec![Event::Ready, ended(), Event::Drained, Event::Exit(7), Event::Drained])),
        seven
    );
    assert!(
        shown(follow_all(vec![Event::Ready, Event::Exit(7), Event::Drained]))
            .contains("output is not complete")
    );
}

#[test]
fn a_machine_without_a_report_is_an_error() {
    let said = Event::MachineEnded("qemu: no such device".to_owned());
    let outcome = shown(follow_all(vec![Event::Ready, Event::Drained, Event::Drained, said]));
    assert!(outcome.contains("without a report") && outcome.contains("no such device"), "{outcome}");
    let outcome = shown(follow_all(vec![Event::Failed("no /dev/kvm".to_owned())]));
    assert!(outcome.contains("no /dev/kvm"), "{outcome}");
}

#[test]
fn a_job_that_runs_on_is_an_error() {
    let (sender, inbox) = channel();
    sender.send(Event::Ready).unwrap();
    let outcome = shown(follow(&inbox, Duration::from_millis(50)));
    assert!(outcome.contains("did not end within 50ms"), "{outcome}");
}

#[test]
fn the_environment_is_named_or_given() {
    let project = Project::here();
    let given = environment(&project, &["KEY=a=b".to_owned(), "PATH".to_owned()]).unwrap();
    assert!(given.contains(&("KEY".to_owned(), "a=b".to_owned())));
    // The last one wins in a shell.
    assert_eq!(given.last().unwrap(), &("PATH".to_owned(), std::env::var("PATH").unwrap()));
    let unknown = environment(&project, &["NO_SUCH_VARIABLE".to_owned()]).unwrap_err();
    assert!(unknown.to_string().contains("no such variable"));
}
