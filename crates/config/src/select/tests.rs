use beta9_types::RuntimeKind::{Firecracker, Gvisor, Qemu, Runc};
use proptest::prelude::*;

use super::*;
use crate::Source;

fn pool(runtime: RuntimeChoice, fallback: &[RuntimeKind]) -> Pool {
    let mut pool = Pool::bare(PoolName::default(), (runtime, Source::Default));
    pool.fallback = fallback.to_vec();
    pool
}

/// Runs a selection on a machine where only `working` works; returns what was tried.
fn run(selection: &mut Selection, working: &[RuntimeKind]) -> Vec<(RuntimeKind, Step)> {
    let mut tried = Vec::new();
    while let Some(kind) = selection.next() {
        let result = if working.contains(&kind) { Ok(()) } else { Err(format!("{kind} is missing")) };
        tried.push((kind, selection.record(result)));
    }
    tried
}

const FIRECRACKER: RuntimeChoice = RuntimeChoice::Exactly(Firecracker);

#[test]
fn what_works_is_used_at_once() {
    let mut selection = Selection::begin(&pool(FIRECRACKER, &[Runc]));
    assert_eq!(run(&mut selection, &[Firecracker, Runc]), [(Firecracker, Step::Ready(Firecracker))]);
    assert_eq!((selection.used(), selection.fell_back()), (Some(Firecracker), false));
    assert_eq!((selection.explain(), selection.reasons().len()), (None, 0));
}

#[test]
fn fallbacks_are_tried_in_the_pools_order() {
    let mut selection = Selection::begin(&pool(FIRECRACKER, &[Qemu, Gvisor, Runc]));
    let tried = run(&mut selection, &[Gvisor, Runc]);
    assert_eq!(
        tried,
        [(Firecracker, Step::FallBack(Qemu)), (Qemu, Step::FallBack(Gvisor)), (Gvisor, Step::Ready(Gvisor))]
    );
    assert_eq!((selection.used(), selection.fell_back()), (Some(Gvisor), true));
    assert_eq!(selection.explain().unwrap(), "firecracker: firecracker is missing; qemu: qemu is missing");
}

#[test]
fn an_empty_fallback_fails_closed() {
    let mut selection = Selection::begin(&pool(FIRECRACKER, &[]));
    assert_eq!(run(&mut selection, &[Runc]), [(Firecracker, Step::NotReady)]);
    assert_eq!((selection.used(), selection.fell_back()), (None, false));
    assert_eq!(selection.reasons(), [Attempt { kind: Firecracker, error: "firecracker is missing".into() }]);
}

#[test]
fn a_runtime_is_tried_once_even_if_it_is_its_own_fallback() {
    let mut selection = Selection::begin(&pool(RuntimeChoice::Exactly(Runc), &[Runc]));
    assert_eq!(run(&mut selection, &[]), [(Runc, Step::NotReady)]);
}

#[test]
fn microvm_is_satisfied_by_either_engine() {
    let mut selection = Selection::begin(&pool(RuntimeChoice::Microvm, &[Runc]));
    assert_eq!(
        run(&mut selection, &[Qemu, Runc]),
        [(Firecracker, Step::TryNext(Qemu)), (Qemu, Step::Ready(Qemu))]
    );
    assert!(!selection.fell_back());
    assert_eq!(selection.explain(), None);

    let mut selection = Selection::begin(&pool(RuntimeChoice::Microvm, &[Runc]));
    let tried = run(&mut selection, &[Runc]);
    assert_eq!(tried[1..], [(Qemu, Step::FallBack(Runc)), (Runc, Step::Ready(Runc))]);
    assert!(selection.fell_back());
}

#[test]
fn an_exact_request_never_falls_back() {
    let mut selection = Selection::exactly(PoolName::default(), FIRECRACKER);
    assert_eq!(run(&mut selection, &[Runc, Gvisor, Qemu]), [(Firecracker, Step::NotReady)]);
    let mut selection = Selection::exactly(PoolName::default(), RuntimeChoice::Microvm);
    assert_eq!(run(&mut selection, &[Runc]), [(Firecracker, Step::TryNext(Qemu)), (Qemu, Step::NotReady)]);
}

#[test]
fn a_choice_that_is_made_stays() {
    let mut selection = Selection::begin(&pool(FIRECRACKER, &[Runc]));
    run(&mut selection, &[Firecracker]);
    let made = selection.clone();
    assert_eq!(selection.record(Err("later".into())), Step::Ready(Firecracker));
    assert_eq!(selection, made);

    let mut selection = Selection::begin(&pool(FIRECRACKER, &[]));
    run(&mut selection, &[]);
    assert_eq!(selection.record(Ok(())), Step::NotReady);
}

#[test]
fn its_record_names_everything() {
    let mut selection = Selection::begin(&pool(FIRECRACKER, &[Runc]));
    run(&mut selection, &[Runc]);
    assert_eq!(
        serde_json::to_string(&selection).unwrap(),
        r#"{"pool":"default","asked":"firecracker","used":"runc","fell_back":true,"reasons":[{"kind":"firecracker","error":"firecracker is missing"}]}"#
    );
}

proptest! {
    /// For every pool and every machine: nothing is tried twice, nothing is used that was not allowed, and the first
    /// allowed runtime that works is the one.
    #[test]
    fn the_first_allowed_runtime_that_works_is_used(
        asked in prop::sample::select(vec!["runc", "gvisor", "firecracker", "qemu", "microvm"]),
        fallback in prop::collection::vec(prop::sample::select(RuntimeKind::ALL.to_vec()), 0..5),
        working in prop::collection::vec(prop::sample::select(RuntimeKind::ALL.to_vec()), 0..4),
    ) {
        let asked: RuntimeChoice = asked.parse().unwrap();
        let mut selection = Selection::begin(&pool(asked, &fallback));
        let tried: Vec<RuntimeKind> = run(&mut selection, &working).into_iter().map(|(kind, _)| kind).collect();
        let order = || asked.candidates().iter().chain(&fallback).copied();
        prop_assert_eq!(selection.used(), order().find(|kind| working.contains(kind)));
        let fell_back = selection.used().is_some_and(|kind| !asked.candidates().contains(&kind));
        prop_assert_eq!(selection.fell_back(), fell_back);
        for (index, kind) in tried.iter().enumerate() {
            prop_assert!(!tried[..index].contains(kind));
        }
    }
}
