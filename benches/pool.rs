//! What a relay buffer costs to take and to give back. The bar is 50 ns.
//!
//! `cargo bench --bench pool`

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use tidegate::io::buf::{Pool, Size};

fn take_and_give_back(criterion: &mut Criterion) {
    let pool = Pool::new(64, Arc::default());
    for (name, size) in [("small", Size::Small), ("large", Size::Large)] {
        criterion.bench_function(&format!("take and give back, {name}"), |bencher| {
            bencher.iter(|| black_box(pool.take(black_box(size))));
        });
    }
}

criterion_group!(pool, take_and_give_back);
criterion_main!(pool);
