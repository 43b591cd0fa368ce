use lathe_engine::model::{LoadFor, Model};
use std::{path::Path, time::Instant};
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let t = Instant::now();
    let model = Model::load(Path::new(&path), LoadFor::Inference).unwrap();
    println!("load {:.3}s", t.elapsed().as_secs_f64());
    let rope = model.rope_table(2048);
    for depth in [8usize, 512] {
        let mut cache = model.new_cache(2048).unwrap();
        let ids: Vec<u32> = (0..depth as u32).map(|i| 1000 + (i * 7919) % 40000).collect();
        let t = Instant::now();
        model.decode(&ids, &mut cache, &rope).unwrap();
        println!("prefill {depth}: {:.1} tok/s", depth as f64 / t.elapsed().as_secs_f64());
        let t = Instant::now();
        let n = 64;
        for i in 0..n {
            model.decode(&[500 + i], &mut cache, &rope).unwrap().to_vec1::<f32>().unwrap();
        }
        println!("decode at {depth}: {:.1} tok/s", f64::from(n) / t.elapsed().as_secs_f64());
    }
}
