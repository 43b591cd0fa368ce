use std::{env, process::Command};

use lathe_kernels::gpu::{Arg, Grid};

use super::launch;

const FAULT: &str = "LATHE_EMULATED_FAULT";

/// Two blocks of 64 threads with as many floats, and 1 KiB of shared memory.
fn run(name: &str) -> Vec<f32> {
    let mut values: Vec<f32> = (0..64u8).map(f32::from).collect();
    let mut count = vec![0u32];
    let args = [Arg::Pointer(values.as_mut_ptr() as u64), Arg::Pointer(count.as_mut_ptr() as u64)];
    let grid = Grid { blocks: [2, 1, 1], threads: 64, shared_bytes: 1024 };
    launch(name, grid, &args).unwrap();
    assert_eq!(count, [if name == "sound" { 128 } else { 0 }]);
    values
}

#[test]
fn a_sound_kernel_runs() {
    let reversed_in_pairs: Vec<f32> = (0..64u8).map(|i| f32::from(63 - (i ^ 1))).collect();
    assert_eq!(run("sound"), reversed_in_pairs);
}

/// Each ends the process, so each has one.
#[test]
fn faults_are_found() {
    if let Ok(name) = env::var(FAULT) {
        run(&name);
        return;
    }
    for (name, said) in [
        ("no_barrier", "bytes of shared memory"),
        ("no_warp_barrier", "bytes of shared memory"),
        ("no_barrier_before_writing", "bytes of shared memory"),
        ("no_wait", "during a copy to 4 bytes of shared memory"),
        ("no_barrier_behind_copies", "bytes of shared memory"),
        ("blocks_at_one_place", "a second write to 4 bytes of global memory"),
        ("a_block_writes_what_another_reads", "a write to 4 bytes of global memory"),
        ("beyond_a_tensor", "a read of 4 bytes at"),
        ("beyond_shared_memory", "a write to 4 bytes at"),
        ("beyond_an_array", "an array has no element 64"),
        ("not_aligned", "not aligned"),
    ] {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "tests::faults_are_found", "--nocapture"]).env(FAULT, name);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(said), "{name}: {text}");
        assert!(text.contains(&format!("kernel {name}, block")), "{name}: {text}");
    }
}
