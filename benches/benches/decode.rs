//! Bulk decode in bytes of code a second, over this benchmark's own machine code: real compiler output on every x86-64 host.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trapgate_x86::columns::decode_columns;
use trapgate_x86::insn::Bits;
use trapgate_x86::model::X86_64_V2;

/// Code bytes of this program: on other hosts they are decoded all the same, as mostly invalid instructions.
fn code() -> Vec<u8> {
    let path = std::env::current_exe().expect("a program knows its file");
    let file = std::fs::read(path).expect("its file can be read");
    let middle = file.len() / 4;
    file[middle..(middle + (1 << 20)).min(file.len())].to_vec()
}

fn decode(c: &mut Criterion) {
    let code = code();
    let features = X86_64_V2.features;
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(code.len() as u64)).sample_size(20);
    group.bench_function("columns", |b| b.iter(|| decode_columns(&code, Bits::B64, &features).len()));
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
