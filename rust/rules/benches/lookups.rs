//! A list of a million domains: what it takes in memory, and what a look-up costs.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ech_workers_rules::{Host, Rule, Rules, Way};

const DOMAINS: u32 = 1_000_000;

/// About as long as those of published lists: 19 bytes.
fn domain(number: u32) -> String {
    let mixed = number.wrapping_mul(2_654_435_761);
    format!("{mixed:08x}-{}.example", number % 10)
}

/// The resident memory of this process in bytes (proc_pid_statm(5)).
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or_default() * 4096
}

fn rules() -> Rules {
    let list: String = (0..DOMAINS).map(|number| domain(number) + "\n").collect();
    let before = resident();
    let mut rule = Rule::new(Way::Block);
    rule.add_domain_list(list.as_bytes())
        .expect("every line is a name");
    let megabytes = resident().saturating_sub(before) as f64 / 1e6;
    println!("a million domains: {megabytes:.0} MB");
    Rules::new(vec![rule.into()])
}

fn lookups(criterion: &mut Criterion) {
    let rules = rules();
    let mut group = criterion.benchmark_group("rules/million");
    let mut number = 0_u32;
    group.bench_function("listed", |bencher| {
        let names: Vec<_> = (0..4096)
            .map(|at| format!("www.cdn.{}", domain(at * 244)))
            .collect();
        bencher.iter(|| {
            number = number.wrapping_add(1);
            let name = &names[number as usize % names.len()];
            black_box(rules.decide(Host::Name(black_box(name)), 443))
        });
    });
    group.bench_function("unlisted", |bencher| {
        let names: Vec<_> = (0..4096)
            .map(|at| format!("www.cdn.{at}.example.org"))
            .collect();
        bencher.iter(|| {
            number = number.wrapping_add(1);
            let name = &names[number as usize % names.len()];
            black_box(rules.decide(Host::Name(black_box(name)), 443))
        });
    });
    group.finish();
}

criterion_group!(benches, lookups);
criterion_main!(benches);
