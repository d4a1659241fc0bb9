//! The cache of decoded blocks.
//!
//! A block is keyed by where its code lies in memory and by the mode it was decoded for, so every linear alias shares
//! it. It stays while the code counter of its page says that nobody wrote there; after a write its bytes are compared
//! and only a real change throws it away, so data beside code costs little.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use trapgate_x86::decode::decode;
use trapgate_x86::insn::{Bits, DecodeError};

use super::{Uop, alu, select};
use crate::fault::Done;
use crate::hooks::HookKind;
use crate::memory::PAGE;
use crate::mix::Mix;
use crate::mmu::access::Place;
use crate::state::{NO_PAGE, Vcpu};

/// Most instructions of a block: longer ones gain nothing (blocks are five instructions long on average).
const LONGEST: usize = 32;
/// Slots of the table from linear address to block.
const JUMPS: usize = 8192;
/// Bytes that the cache may take before it is emptied, the moment included in which one of its tables grows.
pub(crate) const BUDGET: usize = 48 << 20;
/// What an allocator takes besides what it was asked for.
const OVERHEAD: usize = 16;

/// What a block was decoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Offset of the first byte in the host mapping.
    pub host: u64,
    pub bits: Bits,
    pub flat: bool,
    /// With execution hooks installed: their generation and the linear address, which hooks are on; else 0.
    pub hooks: (u32, u64),
}

/// A decoded block.
#[derive(Debug)]
pub(crate) struct Block {
    pub key: Key,
    pub uops: Box<[Uop]>,
    /// The first instruction carries an execution hook.
    pub hooked: bool,
    /// Length of the code in bytes.
    pub len: u16,
    /// Code counter of the page when the block was last known good.
    state: u32,
    /// For an instruction across pages: where the second page lay, and its counter.
    second: Option<(u64, u32)>,
    bytes: Box<[u8]>,
}

impl Block {
    /// Bytes that it holds outside of the table of blocks.
    fn storage(&self) -> usize {
        size_of_val(&*self.uops) + size_of_val(&*self.bytes).next_multiple_of(OVERHEAD) + 2 * OVERHEAD
    }

    pub fn pages(&self) -> [u64; 2] {
        [self.key.host & !(PAGE - 1), self.second.map_or(NO_PAGE, |(host, _)| host)]
    }
}

#[derive(Clone, Copy, Debug)]
struct Jump {
    linear: u64,
    /// Everything besides the address that a lookup depends on.
    context: u64,
    block: u32,
}

/// All blocks of one vCPU.
#[derive(Debug)]
pub(crate) struct Cache {
    blocks: Vec<Block>,
    index: HashMap<Key, u32, BuildHasherDefault<Mix>>,
    jumps: Box<[Jump]>,
    /// Bytes that the blocks hold outside of the tables.
    storage: usize,
    /// Most instructions of a block.
    longest: usize,
    /// Where instructions are decoded to: blocks are given memory of the very size, which leaves none in pieces.
    scratch: Vec<Uop>,
    /// Blocks decoded in all, for the statistics.
    pub decoded: u64,
}

const NO_JUMP: Jump = Jump { linear: u64::MAX, context: u64::MAX, block: 0 };

impl Default for Cache {
    fn default() -> Self {
        Cache {
            blocks: Vec::new(),
            index: HashMap::default(),
            jumps: vec![NO_JUMP; JUMPS].into_boxed_slice(),
            storage: 0,
            longest: LONGEST,
            scratch: Vec::with_capacity(LONGEST),
            decoded: 0,
        }
    }
}

impl Cache {
    pub fn block(&self, at: u32) -> &Block {
        &self.blocks[at as usize]
    }

    /// Empties the cache and gives its memory back.
    fn clear(&mut self) {
        self.blocks = Vec::new();
        self.index = HashMap::default();
        self.jumps.fill(NO_JUMP);
        self.storage = 0;
    }

    /// Bytes that the cache takes.
    pub fn bytes(&self) -> usize {
        let tables = Self::tables(self.blocks.capacity(), self.index.capacity());
        size_of_val(&*self.jumps) + tables + self.storage
    }

    /// Bytes of both tables with room for so many blocks and so many entries of the index: of the index's slots, whose
    /// number is a power of two, seven of eight may be used; each has a byte of its own besides.
    fn tables(blocks: usize, index: usize) -> usize {
        let slots = if index == 0 { 0 } else { (index * 8).div_ceil(7).next_power_of_two().max(4) };
        blocks * size_of::<Block>() + slots * (size_of::<(Key, u32)>() + 1)
    }

    /// Empties the cache unless one more block fits; a table that grows is there twice meanwhile.
    fn make_room(&mut self, block: &Block) {
        let (blocks, index) = (self.blocks.capacity(), self.index.capacity());
        let grown = |len: usize, room: usize| if len < room { 0 } else { room + 1 };
        let more = Self::tables(2 * grown(self.blocks.len(), blocks), grown(self.index.len(), index));
        if self.bytes() + more + block.storage() > BUDGET {
            self.clear();
        }
    }

    /// Blocks of one instruction each, or of the usual length.
    pub fn set_longest_one(&mut self, on: bool) {
        self.longest = if on { 1 } else { LONGEST };
        self.clear();
    }

    /// Paranoid mode, before each instruction: forgets blocks and translations, takes the page that ran last for
    /// written, and has everything looked at that a boundary may look at.
    #[inline(never)]
    pub fn distrust(&mut self, cpu: &mut Vcpu) {
        for host in self.blocks.iter().flat_map(Block::pages).filter(|host| *host != NO_PAGE) {
            cpu.memory.page_written(host);
        }
        self.blocks.clear();
        self.index.clear();
        self.storage = 0;
        // The change of epoch takes the table of jumps out of use as well.
        cpu.tlb.flush();
        cpu.attention = true;
        cpu.recheck = true;
    }

    /// The block at the vCPU's RIP, decoded if need be. A fault is one of the fetch.
    #[inline(always)]
    pub fn find(&mut self, cpu: &mut Vcpu) -> Done<u32> {
        let linear = cpu.linear_rip();
        let context = context(cpu);
        let slot = (linear ^ linear >> 13) as usize & (JUMPS - 1);
        let jump = &self.jumps[slot];
        if jump.linear == linear && jump.context == context {
            let block = &self.blocks[jump.block as usize];
            if cpu.memory.code_state(block.key.host) == block.state {
                return Ok(jump.block);
            }
        }
        let (block, direct) = self.find_slow(cpu, linear)?;
        if direct {
            self.jumps[slot] = Jump { linear, context: self::context(cpu), block };
        }
        Ok(block)
    }

    /// By the place of the code; the flag tells whether the result may be found by its linear address next time.
    #[inline(never)]
    fn find_slow(&mut self, cpu: &mut Vcpu, linear: u64) -> Done<(u32, bool)> {
        let rip = cpu.rip;
        if cpu.mode.bits != Bits::B64 && !cpu.mode.flat && rip > u64::from(cpu.seg[1].limit) {
            return cpu.protection();
        }
        let place = cpu.fetch_place(linear)?;
        let (Place::Ram(host) | Place::Rom(host)) = place else { return self.device_code(cpu, linear) };
        let hooks = if cpu.hooks.exec { (cpu.hooks.generation, linear) } else { (0, 0) };
        let key = Key { host, bits: cpu.mode.bits, flat: cpu.mode.flat, hooks };
        if let Some(&at) = self.index.get(&key) {
            let block = &self.blocks[at as usize];
            let direct = block.second.is_none();
            // Nobody has written to its page.
            if direct && block.state & 1 == 1 && cpu.memory.code_state(host) == block.state {
                return Ok((at, true));
            }
            if self.still_good(cpu, at, linear)? {
                return Ok((at, direct));
            }
        }
        self.decode(cpu, key, linear)
    }

    /// Whether a known block is what memory holds now; its counters are renewed if so.
    fn still_good(&mut self, cpu: &mut Vcpu, at: u32, linear: u64) -> Done<bool> {
        let block = &mut self.blocks[at as usize];
        let first = block.key.host;
        let in_first = block.bytes.len().min((PAGE - first % PAGE) as usize);
        let second = match block.second {
            None => None,
            Some((host, _)) => match cpu.fetch_place(linear.wrapping_add(in_first as u64))? {
                Place::Ram(now) | Place::Rom(now) if now & !(PAGE - 1) == host => Some(host),
                _ => return Ok(false),
            },
        };
        block.state = cpu.watch_code(first);
        let mut now = [0; 15 * LONGEST + 15];
        let now = &mut now[..block.bytes.len()];
        cpu.memory.read_host(first, &mut now[..in_first]);
        if let Some(host) = second {
            block.second = Some((host, cpu.watch_code(host)));
            cpu.memory.read_host(host, &mut now[in_first..]);
        }
        Ok(*now == *block.bytes)
    }

    /// Decodes a block and enters it, over an older one of the same key if there is one.
    fn decode(&mut self, cpu: &mut Vcpu, key: Key, linear: u64) -> Done<(u32, bool)> {
        let state = cpu.watch_code(key.host);
        let room = (PAGE - key.host % PAGE) as usize;
        let mut code = [0; 15 * LONGEST + 15];
        let have = room.min(15 * LONGEST);
        cpu.memory.read_host(key.host, &mut code[..have]);
        let mut second = None;
        self.scratch.clear();
        let mut len = decode_run(cpu, &code[..have], key, self.longest, &mut self.scratch);
        if self.scratch.is_empty() {
            // The first instruction goes on in the next page: a block of its own, looked up anew each time.
            let next = cpu.fetch_place(linear.wrapping_add(room as u64))?;
            let (Place::Ram(host) | Place::Rom(host)) = next else { return self.device_code(cpu, linear) };
            let host = host & !(PAGE - 1);
            second = Some((host, cpu.watch_code(host)));
            cpu.memory.read_host(host, &mut code[room..room + 15]);
            // All bytes that were looked at are kept: those of one that does not decode count as well.
            len = decode_run(cpu, &code[..room + 15], key, 1, &mut self.scratch);
        }
        self.decoded += 1;
        let bytes = code[..len].into();
        let hooked = cpu.hooks.exec && cpu.hooks.covers(HookKind::Exec, linear, linear);
        let uops = self.scratch.as_slice().into();
        let block = Block { key, hooked, uops, len: len as u16, state, second, bytes };
        let direct = second.is_none();
        self.make_room(&block);
        self.storage += block.storage();
        if let Some(&at) = self.index.get(&key) {
            let old = std::mem::replace(&mut self.blocks[at as usize], block);
            self.storage -= old.storage();
            return Ok((at, direct));
        }
        let at = self.blocks.len() as u32;
        self.blocks.push(block);
        self.index.insert(key, at);
        Ok((at, direct))
    }

    /// Code in device memory is not run: real boards let it, but nothing does it. Fetches of all ones are #UD there.
    fn device_code(&mut self, cpu: &mut Vcpu, _linear: u64) -> Done<(u32, bool)> {
        cpu.undefined()
    }
}

/// Decodes instructions up to the end of the block or of the bytes; gives the bytes used.
fn decode_run(cpu: &Vcpu, code: &[u8], key: Key, longest: usize, uops: &mut Vec<Uop>) -> usize {
    let features = cpu.features();
    let mut at = 0;
    while uops.len() < longest {
        // A hooked instruction starts a block of its own.
        let linear = key.hooks.1.wrapping_add(at as u64);
        if at > 0 && cpu.hooks.exec && cpu.hooks.covers(HookKind::Exec, linear, linear) {
            break;
        }
        match decode(&code[at..], key.bits, &features) {
            Ok(insn) => {
                let uop = Uop::new(insn, select::handler(&insn), at as u16, key.bits, key.flat);
                uops.push(uop);
                at += usize::from(insn.len);
                if select::ends_block(&insn) {
                    break;
                }
            }
            Err(DecodeError::Truncated) => break,
            Err(error) => {
                // A block that starts with it raises the fault; one that reaches it ends before it.
                if uops.is_empty() {
                    uops.push(faulting(error));
                    at = code.len().min(15);
                }
                break;
            }
        }
    }
    at
}

/// A micro-operation that raises what undecodable bytes raise.
fn faulting(error: DecodeError) -> Uop {
    use trapgate_x86::insn::{Insn, Mem, Operand, Prefixes};
    let insn = Insn {
        op: trapgate_x86::op::Op::Ud2,
        len: 1,
        opsize: 4,
        addrsize: 8,
        cond: 0,
        prefixes: Prefixes::empty(),
        operands: [Operand::None; 4],
        mem: Mem::NONE,
        imm: 0,
        imm2: 0,
    };
    let run = if error == DecodeError::TooLong { super::system::too_long } else { alu::never };
    Uop::new(insn, run, 0, Bits::B64, true)
}

/// Everything besides the address on which a lookup depends, as one number.
#[inline(always)]
fn context(cpu: &Vcpu) -> u64 {
    (cpu.tlb.epoch.wrapping_add(u64::from(cpu.hooks.generation) << 32)) << 4
        | u64::from(cpu.user_view) << 3
        | u64::from(cpu.mode.flat) << 2
        | cpu.mode.bits as u64
}
