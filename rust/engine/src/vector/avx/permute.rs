//! What moves lanes across the halves, and shifts with a count for each lane.

use std::array::from_fn;

use trapgate_x86::insn::{Insn, Operand};
use trapgate_x86::op::Op;

use super::super::interface::Operands;
use super::super::operand::unexpected;
use super::super::sse::lanes::{from_u32s, from_u64s, u32s, u64s};
use super::super::state::VectorState;
use super::operand::{Wide, read, register, sources, write};

fn u32_lanes(value: Wide) -> [u32; 8] {
    let halves = value.map(|half| u32s(half.to_le_bytes()));
    from_fn(|i| halves[i / 4][i % 4])
}

fn from_u32_lanes(lanes: [u32; 8]) -> Wide {
    [0, 4].map(|at| u128::from_le_bytes(from_u32s(from_fn(|i| lanes[at + i]))))
}

fn u64_lanes(value: Wide) -> [u64; 4] {
    let halves = value.map(|half| u64s(half.to_le_bytes()));
    from_fn(|i| halves[i / 2][i % 2])
}

fn from_u64_lanes(lanes: [u64; 4]) -> Wide {
    [0, 2].map(|at| u128::from_le_bytes(from_u64s([lanes[at], lanes[at + 1]])))
}

pub(super) fn execute<O: Operands>(
    state: &mut VectorState,
    insn: &Insn,
    ops: &mut O,
) -> Result<(), O::Fault> {
    let [dst, first, second, _] = insn.operands;
    let imm = insn.imm as u8;
    let value = match insn.op {
        Op::Vpbroadcastb => broadcast(state, ops, first, 8)?,
        Op::Vpbroadcastw => broadcast(state, ops, first, 16)?,
        Op::Vpbroadcastd | Op::Vbroadcastss => broadcast(state, ops, first, 32)?,
        Op::Vpbroadcastq | Op::Vbroadcastsd => broadcast(state, ops, first, 64)?,
        Op::Vbroadcastf128 | Op::Vbroadcasti128 => broadcast(state, ops, first, 128)?,
        Op::Vextractf128 | Op::Vextracti128 => {
            let halves: Wide = register(state, first)?;
            [halves[usize::from(imm & 1)], 0]
        }
        Op::Vinsertf128 | Op::Vinserti128 => {
            let [half, _] = read(state, ops, second)?;
            let mut value: Wide = register(state, first)?;
            value[usize::from(imm & 1)] = half;
            value
        }
        Op::Vperm2f128 | Op::Vperm2i128 => {
            let (a, b) = sources(state, insn, ops)?;
            let halves = [a[0], a[1], b[0], b[1]];
            [imm, imm >> 4].map(|control| if control & 8 != 0 { 0 } else { halves[usize::from(control & 3)] })
        }
        Op::Vpermq | Op::Vpermpd => {
            let lanes = u64_lanes(read(state, ops, first)?);
            from_u64_lanes(from_fn(|i| lanes[usize::from(imm >> (2 * i) & 3)]))
        }
        Op::Vpermd | Op::Vpermps => {
            let (indexes, value) = sources(state, insn, ops)?;
            let (indexes, lanes) = (u32_lanes(indexes), u32_lanes(value));
            from_u32_lanes(indexes.map(|index| lanes[(index & 7) as usize]))
        }
        Op::Vpermilps | Op::Vpermilpd => in_lane(state, insn, ops)?,
        _ => {
            let (value, counts) = sources(state, insn, ops)?;
            shifted(insn.op, value, counts).ok_or_else(unexpected)?
        }
    };
    write(state, ops, dst, value)
}

/// The low `width` bits of the source in every lane.
fn broadcast<O: Operands>(
    state: &VectorState,
    ops: &mut O,
    source: Operand,
    width: u32,
) -> Result<Wide, O::Fault> {
    let [mut value, _] = read(state, ops, source)?;
    value &= u128::MAX >> (128 - width);
    let mut width = width;
    while width < 128 {
        value |= value << width;
        width *= 2;
    }
    Ok([value; 2])
}

/// VPERMILPS and VPERMILPD: selectors in an immediate or, as the third operand, in a vector.
fn in_lane<O: Operands>(state: &VectorState, insn: &Insn, ops: &mut O) -> Result<Wide, O::Fault> {
    let imm = insn.imm as usize;
    let by_immediate = matches!(insn.operands[2], Operand::Imm { .. });
    let (value, selectors) = sources(state, insn, ops)?;
    if insn.op == Op::Vpermilps {
        let (lanes, selectors) = (u32_lanes(value), u32_lanes(selectors));
        let select = |i: usize| if by_immediate { imm >> (2 * (i % 4)) } else { selectors[i] as usize } & 3;
        return Ok(from_u32_lanes(from_fn(|i| lanes[i / 4 * 4 + select(i)])));
    }
    let (lanes, selectors) = (u64_lanes(value), u64_lanes(selectors));
    // In a vector it is bit 1 that counts.
    let select = |i: usize| if by_immediate { imm >> i } else { (selectors[i] >> 1) as usize } & 1;
    Ok(from_u64_lanes(from_fn(|i| lanes[i / 2 * 2 + select(i)])))
}

/// Each lane by its own count; one of the lane's width or more shifts everything out.
fn shifted(op: Op, value: Wide, counts: Wide) -> Option<Wide> {
    let by_32 = |shift: fn(u32, u32) -> u32| {
        let (lanes, counts) = (u32_lanes(value), u32_lanes(counts));
        from_u32_lanes(from_fn(|i| shift(lanes[i], counts[i])))
    };
    let by_64 = |shift: fn(u64, u32) -> Option<u64>| {
        let (lanes, counts) = (u64_lanes(value), u64_lanes(counts));
        from_u64_lanes(from_fn(|i| shift(lanes[i], counts[i].min(64) as u32).unwrap_or(0)))
    };
    Some(match op {
        Op::Vpsllvd => by_32(|lane, count| lane.checked_shl(count).unwrap_or(0)),
        Op::Vpsrlvd => by_32(|lane, count| lane.checked_shr(count).unwrap_or(0)),
        Op::Vpsravd => by_32(|lane, count| (lane as i32 >> count.min(31)) as u32),
        Op::Vpsllvq => by_64(u64::checked_shl),
        Op::Vpsrlvq => by_64(u64::checked_shr),
        _ => return None,
    })
}
