//! Random straight-line blocks of several instructions: results and flags flow from one to the next, as they do in
//! programs and as they do not in single instructions.
//!
//! A few registers point into the window and are left alone; everything else is data. No instruction reads a flag that
//! one before it left undefined.

use std::collections::BTreeMap;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use trapgate_x86::decode::decode;
use trapgate_x86::exception::Vector;
use trapgate_x86::flags::flag_use;
use trapgate_x86::insn::Bits;
use trapgate_x86::op::Op;

use crate::MODEL;
use crate::case::{Case, Mode, Outcome};
use crate::catalog::{Entry, Group, Verdict, catalog, group};
use crate::compare::{self, Undefined};
use crate::encode::{Form, Instance, instance, set_form};
use crate::host::BATCH;
use crate::prepare::is_gather;
use crate::random::Random;
use crate::report::{self, Report};
use crate::space::{CODE, HIGH, LOW, WINDOW};
use crate::suite::{Pair, Plan};
use crate::values;
use crate::vendor;

/// Registers that point into the window: RBX, RSP, RBP, RSI, RDI.
const POINTERS: [usize; 5] = [3, 4, 5, 6, 7];
/// R15 is a small index.
const INDEX: usize = 15;
const KEPT: u16 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 15;

/// A block as a case, with what is needed to judge its outcome.
#[derive(Clone, Debug)]
pub struct Block {
    pub case: Case,
    /// By offset: each instruction, and the flags that are undefined before it.
    insns: BTreeMap<u64, (Instruction, u64)>,
    /// Flags that are undefined at the end.
    undefined: u64,
}

const GROUPS: usize = 4;

/// The encodings that blocks are made of, by group.
fn ingredients() -> [Vec<Entry>; GROUPS] {
    let all: Vec<Entry> =
        catalog(Mode::Long).into_iter().filter(|e| e.verdict == Verdict::Run && fits(e)).collect();
    [Group::Integer, Group::Vector, Group::X87, Group::Avx]
        .map(|group| all.iter().filter(|entry| entry.group == group).copied().collect())
}

/// Whether an encoding goes on to the next instruction, moves no pointer far and is defined whatever its operands are.
fn fits(entry: &Entry) -> bool {
    use Mnemonic::*;
    let insn = Instruction::with(entry.code);
    let mnemonic = entry.code.mnemonic();
    let stays = insn.flow_control() == iced_x86::FlowControl::Next;
    let loads_state = matches!(
        mnemonic,
        Popf | Popfq
            | Enter
            | Leave
            | Ldmxcsr
            | Vldmxcsr
            | Fldenv
            | Frstor
            | Fldcw
            | Fxrstor
            | Fxrstor64
            | Xrstor
            | Xrstor64
    );
    // The images do not fit beside the pointers, and are compared alone.
    let large = entry.code.op_code().is_save_restore() || matches!(mnemonic, Fnsave | Fsave);
    let far = matches!(mnemonic, Bt | Bts | Btr | Btc);
    let undefined = matches!(mnemonic, Shld | Shrd | Fstpnce | Ud0 | Ud1);
    // Indexes in vector registers would be anything.
    stays && !loads_state && !large && !far && !undefined && !is_gather(&insn)
}

struct Maker<'a> {
    random: &'a mut Random,
    encoder: Encoder,
    info: InstructionInfoFactory,
    block: Block,
    region: u64,
    /// Whether an x87 instruction, which may have set the pointers, is in the block.
    x87: bool,
}

fn block(ingredients: &[Vec<Entry>; GROUPS], random: &mut Random) -> Block {
    let mut case = Case::ZERO;
    let region = random.pick(&[LOW, HIGH]);
    case.window_at = region + 8 * random.below((2 * 4096 - WINDOW as u64) / 8);
    random.fill(&mut case.window);
    values::state(&mut case.state, random, Group::Vector);
    case.state.rip = CODE + 0x400 + random.below(64);
    for n in POINTERS {
        case.state.gpr[n] = (case.window_at + 768 + random.below(512)) & !63;
    }
    case.state.gpr[INDEX] = random.below(8);
    let block = Block { case, insns: BTreeMap::new(), undefined: 0 };
    let mut maker = Maker {
        random,
        encoder: Encoder::new(64),
        info: InstructionInfoFactory::new(),
        block,
        region,
        x87: false,
    };
    let wanted = 2 + maker.random.below(14) as usize;
    // A block leans to one group, so that values meet.
    let lean = maker.random.below(GROUPS as u64) as usize;
    for _ in 0..400 {
        let group = if maker.random.one_in(3) { maker.random.below(GROUPS as u64) as usize } else { lean };
        let entry = maker.random.pick(&ingredients[group]);
        let instance = instance(entry.code, Mode::Long, maker.random);
        maker.append(instance);
        if maker.block.insns.len() == wanted {
            break;
        }
    }
    maker.block
}

impl Maker<'_> {
    /// Appends an instruction, if it is one that keeps the rules.
    fn append(&mut self, instance: Instance) -> Option<()> {
        let Instance { mut insn, form, width, .. } = instance;
        if width != 8 || insn.has_rep_prefix() || insn.has_repne_prefix() {
            return None;
        }
        if form.is_some() {
            self.place(&mut insn)?;
        }
        if !self.keeps_pointers(&insn) || vendor::spoils_block(&insn, self.x87, self.block.case.state.fcw()) {
            return None;
        }
        if let Some((lane, _)) = vendor::summing_lane(insn.mnemonic()).filter(|_| *vendor::AMD) {
            insn.set_immediate8(insn.immediate8() & 0xf0 | 1 << lane);
        }
        let at = self.block.case.code_len;
        let length = self.encoder.encode(&insn, self.block.case.state.rip + at).ok()?;
        let bytes = self.encoder.take_buffer();
        let bytes = &bytes[bytes.len() - length..];
        let ours = decode(bytes, Bits::B64, &MODEL.features).ok()?;
        let flags = flag_use(&ours);
        if u64::from(flags.read) & self.block.undefined != 0 {
            return None;
        }
        let code = self.block.case.code.get_mut(at as usize..at as usize + length)?;
        code.copy_from_slice(bytes);
        self.block.insns.insert(at, (insn, self.block.undefined));
        self.block.undefined = compare::after(self.block.undefined, flags);
        if shifts_out_everything(ours.op) {
            // CF is undefined for counts of the operand's size and more.
            self.block.undefined |= values::flag::CF;
        }
        self.block.case.code_len = at + length as u64;
        self.x87 |= group(insn.code()) == Group::X87;
        Some(())
    }

    /// Gives the memory operand an address in the window.
    fn place(&mut self, insn: &mut Instruction) -> Option<()> {
        let operand = (0..insn.op_count()).find(|&n| insn.op_kind(n) == OpKind::Memory)?;
        let size = insn.memory_size().size() as u64;
        let align = if insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg || size == 16 || size == 32
        {
            size.max(1)
        } else {
            1
        };
        let rip = self.region == LOW && self.random.one_in(6);
        let base = (!rip).then(|| self.random.pick(&POINTERS));
        let index = (!rip && align == 1 && self.random.one_in(3)).then_some(INDEX);
        let scale = if index.is_some() { self.random.pick(&[1, 2, 4, 8]) } else { 1 };
        let form = Form { base, index, scale, displacement: 4, rip, width: 8 };
        set_form(insn, operand, &form);
        let offset = (self.random.below(512) & !(align - 1)) as i64 - 256;
        let displacement = if rip { (self.block.case.window_at + 1024) & !63 } else { 0 };
        insn.set_memory_displ_size(if !rip && offset as i8 as i64 == offset { 1 } else { 8 });
        insn.set_memory_displacement64(displacement.wrapping_add_signed(offset));
        Some(())
    }

    /// Whether the pointers are read only, but for what strings and the stack do to them.
    fn keeps_pointers(&mut self, insn: &Instruction) -> bool {
        let own: u16 = if insn.is_string_instruction() {
            1 << 6 | 1 << 7
        } else if insn.is_stack_instruction() {
            1 << 4
        } else {
            0
        };
        let explicit = (0..insn.op_count()).any(|n| {
            let register = insn.op_register(n);
            let writes = self.info.info(insn).op_access(n) != OpAccess::Read;
            insn.op_kind(n) == OpKind::Register && writes && register.full_register() == Register::RSP
        });
        let written =
            self.info.info(insn).used_registers().iter().filter(|used| {
                !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
            });
        let written = written
            .filter(|used| used.register().is_gpr())
            .fold(0u16, |all, used| all | 1 << used.register().full_register().number());
        !explicit && written & KEPT & !own == 0
    }
}

fn shifts_out_everything(op: Op) -> bool {
    matches!(op, Op::Shl | Op::Shr)
}

impl Block {
    /// What is undefined where the processor ended.
    fn undefined_at(&self, silicon: &Outcome) -> Undefined {
        let at = silicon.state.rip.wrapping_sub(self.case.state.rip);
        match self.insns.range(..=at).next_back() {
            Some((_, &(insn, flags)))
                if at < self.case.code_len && silicon.trap.vector != Vector::Bp as u64 =>
            {
                Undefined { flags, ..compare::fault(&insn) }
            }
            _ => Undefined { flags: self.undefined, ..Undefined::default() },
        }
    }

    /// The first `n` instructions.
    fn prefix(&self, n: usize) -> Block {
        let mut prefix = self.clone();
        if let Some((&at, &(_, undefined))) = self.insns.iter().nth(n) {
            prefix.insns.split_off(&at);
            prefix.case.code_len = at;
            prefix.undefined = undefined;
        }
        prefix
    }
}

/// Runs random blocks, each also in steps of one instruction.
pub fn run(plan: &Plan) -> Report {
    run_on(&mut Pair::default(), plan)
}

/// Runs random blocks on a pair.
pub fn run_on(pair: &mut Pair, plan: &Plan) -> Report {
    let (mut report, ingredients) = (Report::default(), ingredients());
    let numbers: Vec<u64> = plan.blocks().collect();
    for numbers in numbers.chunks(BATCH) {
        let make = |&number: &u64| block(&ingredients, &mut Random::fork(plan.seed, &[u64::MAX, number]));
        let blocks: Vec<Block> = numbers.iter().map(make).collect();
        let cases: Vec<Case> = blocks.iter().map(|block| block.case).collect();
        let outcomes = pair.host.run(&cases);
        for ((block, silicon), number) in blocks.iter().zip(outcomes).zip(numbers) {
            report.block(block.insns.values().map(|(insn, _)| *insn), &silicon);
            let whole = pair.guest.checked(&block.case);
            let second = match &mut pair.translated {
                // What the interpreter gets wrong is its own suite's to say.
                Some(_)
                    if compare::difference(&block.case, block.undefined_at(&silicon), &silicon, &whole)
                        .is_some() =>
                {
                    continue;
                }
                Some(translated) => ("translated", translated.checked(&block.case)),
                None => ("stepped", pair.guest.run_stepwise(&block.case)),
            };
            for (how, ours) in [("whole", whole), second] {
                if let Some(difference) =
                    compare::difference(&block.case, block.undefined_at(&silicon), &silicon, &ours)
                {
                    if let Some(case) = vendor::without_pointers(&block.case)
                        && compare::difference(
                            &block.case,
                            block.undefined_at(&silicon),
                            &silicon,
                            &pair.guest.checked(&case),
                        )
                        .is_none()
                    {
                        report.by_maker(vendor::LOST);
                        continue;
                    }
                    let again = format!("TRAPGATE_SEED={} TRAPGATE_CASE=block:{number}", plan.seed);
                    let line = shortest(pair, block, &again)
                        .unwrap_or_else(|| report::line(&block.case, &again, &difference, &silicon, &ours));
                    report.failure(format!("block {how} {}", report::field(&difference)), || line);
                }
            }
        }
    }
    report
}

/// The line for the shortest beginning of a block that fails, if one does by itself.
fn shortest(pair: &mut Pair, block: &Block, again: &str) -> Option<String> {
    (1..=block.insns.len()).find_map(|n| {
        let prefix = block.prefix(n);
        let silicon = pair.host.run(&[prefix.case]).remove(0);
        let ours = pair.translated.as_mut().unwrap_or(&mut pair.guest).checked(&prefix.case);
        let difference = compare::difference(&prefix.case, prefix.undefined_at(&silicon), &silicon, &ours)?;
        Some(report::line(&prefix.case, again, &difference, &silicon, &ours))
    })
}
