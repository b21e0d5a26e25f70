//! A seccomp filter as programs for the guest's kernel.
//!
//! The compiler knows filters with two actions, one for what matches and one for the rest. So a filter with more becomes
//! several programs, of which the kernel takes the strictest answer: one that answers the default to every call without
//! a rule, and one per other action. They are in the order in which they are to be installed.
//!
//! Programs of another architecture than x86-64 are ended: the guest runs 64-bit programs.

pub(super) mod numbers;

pub(crate) use numbers::number as system_call_number;

use std::collections::BTreeMap;

use beta9_runtime::{Error, ErrorKind, Result};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::unsupported;

/// The rules of one call; an empty list is every use of it.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What a call gets whose rule names no error.
const EPERM: u32 = 1;

/// Compiles a filter.
pub(super) fn compile(filter: &LinuxSeccomp) -> Result<Vec<Vec<u8>>> {
    let default = action(filter.default_action(), filter.default_errno_ret())?;
    let mut all = Rules::new();
    let mut by_action: Vec<(SeccompAction, Rules)> = Vec::new();
    for call in filter.syscalls().iter().flatten() {
        let wanted = action(call.action(), call.errno_ret())?;
        if wanted == default {
            continue;
        }
        add(&mut all, call)?;
        if wanted != SeccompAction::Allow {
            match by_action.iter_mut().find(|(known, _)| *known == wanted) {
                Some((_, rules)) => add(rules, call)?,
                None => {
                    let mut rules = Rules::new();
                    add(&mut rules, call)?;
                    by_action.push((wanted, rules));
                }
            }
        }
    }
    let mut programs = Vec::new();
    for (wanted, rules) in by_action {
        programs.push(program(rules, SeccompAction::Allow, wanted)?);
    }
    if default != SeccompAction::Allow {
        programs.push(program(all, default, SeccompAction::Allow)?);
    }
    Ok(programs)
}

fn program(rules: Rules, mismatch: SeccompAction, matched: SeccompAction) -> Result<Vec<u8>> {
    let compiled: BpfProgram = SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(|e| Error::caused(ErrorKind::Failed, "compile the seccomp filter", e))?;
    // `struct sock_filter` of `linux/filter.h`, on a machine like this one.
    Ok(compiled
        .iter()
        .flat_map(|step| {
            let [code_low, code_high] = step.code.to_ne_bytes();
            let [a, b, c, d] = step.k.to_ne_bytes();
            [code_low, code_high, step.jt, step.jf, a, b, c, d]
        })
        .collect())
}

/// Adds a call's rule for each of its names. One without conditions covers those with.
fn add(rules: &mut Rules, call: &LinuxSyscall) -> Result<()> {
    let conditions = call.args().iter().flatten().map(condition).collect::<Result<Vec<_>>>()?;
    // libseccomp knows names of every architecture, and leaves out those that this one has not.
    for number in call.names().iter().filter_map(|name| numbers::number(name)) {
        if conditions.is_empty() {
            rules.insert(number, Vec::new());
            continue;
        }
        let is_whole = rules.get(&number).is_some_and(Vec::is_empty);
        if !is_whole {
            let rule = SeccompRule::new(conditions.clone())
                .map_err(|e| Error::caused(ErrorKind::Failed, "compile a seccomp rule", e))?;
            rules.entry(number).or_default().push(rule);
        }
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> Result<SeccompCondition> {
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
        // The value is the mask, the second one what is left under it.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    let index = u8::try_from(arg.index()).unwrap_or(u8::MAX);
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
        .map_err(|e| Error::caused(ErrorKind::Failed, "compile a seccomp condition", e))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction> {
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(errno.unwrap_or(EPERM)),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActTrace => SeccompAction::Trace(errno.unwrap_or(EPERM)),
        LinuxSeccompAction::ScmpActNotify => return Err(unsupported("seccomp action SCMP_ACT_NOTIFY")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(json: &str) -> usize {
        let programs = compile(&serde_json::from_str(json).unwrap()).unwrap();
        assert!(programs.iter().all(|program| !program.is_empty() && program.len() % 8 == 0));
        programs.len()
    }

    #[test]
    fn each_action_beside_two_takes_a_program() {
        assert_eq!(compiled(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#), 0);
        assert_eq!(compiled(r#"{"defaultAction":"SCMP_ACT_ERRNO"}"#), 1);
        let rules = r#""syscalls":[{"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW",
             "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]"#;
        assert_eq!(compiled(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{rules}}}"#)), 2);
        assert_eq!(compiled(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{rules}}}"#)), 1);
    }

    #[test]
    fn what_no_guest_can_do_is_refused() {
        let notify = r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#;
        assert!(compile(&serde_json::from_str(notify).unwrap()).is_err());
        let far = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#;
        assert!(compile(&serde_json::from_str(far).unwrap()).is_err());
    }
}
