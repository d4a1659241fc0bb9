//! multicall: several calls in one, each with a result of its own (xen/include/public/xen.h, `multicall_entry`).

use trapgate_engine::exit::Exit;
use trapgate_engine::state::Vcpu;

use super::guest::{Fields, write_u64};
use super::{Args, Done, Waiting, run};
use crate::cpu::PvCpu;
use crate::domain::work;
use crate::errno::Errno;

/// Its own number: one inside another is refused.
const MULTICALL: u64 = 13;
const ENTRY: u64 = 64;
const RESULT: u64 = 8;
const ARGS: u64 = 16;
/// Entries after which the vCPU gets to look around.
const MOST_AT_ONCE: u64 = 128;

/// Makes the calls in order; one that fails does not stop those behind it.
pub(super) fn multicall(pv: &mut PvCpu, cpu: &mut Vcpu, args: Args) -> Result<Done, Exit> {
    let [list, count, ..] = args;
    for done in 0..count {
        let at = list.wrapping_add(done * ENTRY);
        let rest = |done: u64| {
            let mut again = args;
            again[0] = list.wrapping_add(done * ENTRY);
            again[1] = count - done;
            Done::Again(again)
        };
        if done == MOST_AT_ONCE {
            return Ok(rest(done));
        }
        let Ok(entry) = Fields::<56>::read(cpu, at) else { return Ok(Done::Value(Errno::Fault.code())) };
        let number = entry.u64(0);
        let call: Args = std::array::from_fn(|i| entry.u64(16 + 8 * i));
        let result =
            if number == MULTICALL { Done::Value(Errno::Inval.code()) } else { run(pv, cpu, number, call)? };
        match result {
            Done::Value(value) => {
                if write_u64(cpu, at.wrapping_add(RESULT), value).is_err() {
                    return Ok(Done::Value(Errno::Fault.code()));
                }
            }
            // What was behind it is never made: the kernel has gone elsewhere.
            Done::Registers => return Ok(Done::Registers),
            Done::Again(left) => {
                for (value, i) in left.iter().zip(0u64..) {
                    if write_u64(cpu, at.wrapping_add(ARGS + 8 * i), *value).is_err() {
                        return Ok(Done::Value(Errno::Fault.code()));
                    }
                }
                return Ok(rest(done));
            }
            Done::Outside => {
                let result_at = Some(at.wrapping_add(RESULT));
                pv.domain.hypercalls.wait(Waiting { number: number as u32, args: call, result_at });
                pv.domain.ask(work::HYPERCALL);
                return Ok(rest(done + 1));
            }
        }
    }
    Ok(Done::Value(0))
}
