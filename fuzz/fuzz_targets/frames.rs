//! What a process reads that talks to another: a broken peer is an error, never a crash.

#![no_main]

use lathe_protocol::{EventBody, Job, Request, read_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    while let Ok(Some(_)) = read_frame::<EventBody>(&mut &*bytes) {
        break;
    }
    drop(read_frame::<Job>(&mut &*bytes));
    drop(read_frame::<Request>(&mut &*bytes));
    // The same without a length, so that what is inside is reached sooner.
    let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
    framed.extend_from_slice(bytes);
    drop(read_frame::<EventBody>(&mut framed.as_slice()));
    drop(read_frame::<Job>(&mut framed.as_slice()));
    drop(read_frame::<Request>(&mut framed.as_slice()));
});
