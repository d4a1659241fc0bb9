use std::time::Instant;
use trapgate_engine::Exit;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let code = std::fs::read(&args[1]).unwrap();
    let (which, n): (u64, u64) = (args[2].parse().unwrap(), args[3].parse().unwrap());
    let mut engine = trapgate_benches::guest(|a| a.hlt());
    engine.cpu.memory().write(0x20_0000, &code).unwrap();
    engine.cpu.rip = 0x20_0000;
    engine.cpu.regs[7] = which;
    engine.cpu.regs[6] = n;
    engine.cpu.regs[4] = 0x1f_fff0;
    if args.len() > 4 { assert!(engine.set_translate(Some(Default::default()))); }
    let start = Instant::now();
    let mut exit = engine.run(u64::MAX / 4);
    while exit == Exit::Budget { exit = engine.run(u64::MAX / 4); }
    println!("{} {:.6} {} {:?} {:?}", engine.cpu.regs[0], start.elapsed().as_secs_f64(), engine.cpu.count, exit, engine.translator_stats());
}
