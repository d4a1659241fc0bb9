//! Guest instructions a second in the interpreter, by kind of code. Each guest loops for ever and is run for a fixed count.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_benches::{DATA, guest};

const COUNT: u64 = 2_000_000;

fn integer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rcx, 0x1234_5678u64)?;
    a.set_label(&mut top)?;
    a.imul_3(rax, rcx, 0x41c6_4e6d)?;
    a.add(rax, 12345)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 7)?;
    a.xor(rcx, rdx)?;
    a.rol(rcx, 5)?;
    a.test(cl, 1)?;
    a.jz(top)?;
    a.sub(rcx, 3)?;
    a.jmp(top)
}

fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rsi, DATA)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut top)?;
    a.mov(rax, qword_ptr(rsi + rcx * 8))?;
    a.add(rax, qword_ptr(rsi + rcx * 8 + 8))?;
    a.mov(qword_ptr(rsi + rcx * 8 + 16), rax)?;
    a.add(dword_ptr(rsi + rcx * 8 + 24), 1)?;
    a.inc(rcx)?;
    a.and(ecx, 0xfff)?;
    a.jmp(top)
}

fn calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut function) = (a.create_label(), a.create_label());
    a.set_label(&mut top)?;
    a.call(function)?;
    a.jmp(top)?;
    a.set_label(&mut function)?;
    a.push(rbx)?;
    a.lea(rbx, qword_ptr(rax + 8))?;
    a.cmp(rbx, rax)?;
    a.cmovb(rax, rbx)?;
    a.pop(rbx)?;
    a.ret()
}

fn vectors(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rsi, DATA)?;
    a.set_label(&mut top)?;
    a.movdqu(xmm0, xmmword_ptr(rsi))?;
    a.paddd(xmm0, xmm1)?;
    a.pxor(xmm1, xmm0)?;
    a.movdqu(xmmword_ptr(rsi + 16), xmm0)?;
    a.pcmpeqb(xmm2, xmm0)?;
    a.pmovmskb(eax, xmm2)?;
    a.jmp(top)
}

fn doubles(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(rsi, DATA)?;
    a.set_label(&mut top)?;
    a.movsd_2(xmm0, qword_ptr(rsi))?;
    a.mulsd(xmm0, xmm1)?;
    a.addsd(xmm2, xmm0)?;
    a.movsd_2(qword_ptr(rsi + 8), xmm2)?;
    a.jmp(top)
}

type Guest = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn interpreter(c: &mut Criterion) {
    let mut group = c.benchmark_group("interpreter");
    group.throughput(Throughput::Elements(COUNT)).sample_size(10);
    let guests: [(&str, Guest); 5] = [
        ("integer", integer),
        ("memory", memory),
        ("calls", calls),
        ("vectors", vectors),
        ("doubles", doubles),
    ];
    for (name, code) in guests {
        let mut engine = guest(code);
        group.bench_function(name, |b| b.iter(|| engine.run(engine.cpu.count + COUNT)));
    }
    group.finish();
}

criterion_group!(benches, interpreter);
criterion_main!(benches);
