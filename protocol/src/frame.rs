use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

use crate::PROTOCOL_VERSION;

/// A longer frame is taken for a broken peer.
const MAX_FRAME_BYTES: u32 = 256 << 20;

/// The line a worker prints first, e.g. `lathe-worker 1`.
pub fn handshake() -> String {
    format!("lathe-worker {PROTOCOL_VERSION}\n")
}

/// Writes one frame: the JSON's length (u32, little endian), then the JSON.
pub fn write_frame(writer: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(value)?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|length| *length <= MAX_FRAME_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame too large"))?;
    let mut frame = Vec::with_capacity(4 + json.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&json);
    writer.write_all(&frame)?;
    writer.flush()
}

/// Reads one frame; `None` at a clean end of the stream.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match reader.read(&mut length[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes")));
    }
    let mut json = Vec::new();
    reader.take(u64::from(length)).read_to_end(&mut json)?;
    if json.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&json)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_trip() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &vec!["häh", "b"]).unwrap();
        write_frame(&mut wire, &vec!["c"]).unwrap();
        let mut reader = wire.as_slice();
        assert_eq!(read_frame::<Vec<String>>(&mut reader).unwrap(), Some(vec!["häh".into(), "b".into()]));
        assert_eq!(read_frame::<Vec<String>>(&mut reader).unwrap(), Some(vec!["c".into()]));
        assert_eq!(read_frame::<Vec<String>>(&mut reader).unwrap(), None);
    }

    #[test]
    fn a_cut_or_oversized_frame_is_an_error() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &"hello").unwrap();
        for cut in 1..wire.len() {
            assert!(read_frame::<String>(&mut &wire[..cut]).is_err(), "cut at {cut}");
        }
        assert!(read_frame::<String>(&mut u32::MAX.to_le_bytes().as_slice()).is_err());
    }
}
