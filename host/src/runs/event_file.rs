//! TensorBoard's event files: TFRecord frames around the few messages of `event.proto` and `summary.proto` that scalars
//! need, written by hand.

/// An event: when, at which step, and its scalars.
pub(super) struct Scalars {
    /// Seconds since 1970.
    pub at_secs: f64,
    pub step: usize,
    pub values: Vec<(String, f64)>,
}

/// A whole event file. `started_secs` is that of its first event, which names the format.
pub(super) fn write(started_secs: f64, events: &[Scalars]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut head = double(1, started_secs);
    head.extend(bytes(3, b"brain.Event:2"));
    record(&mut file, &head);
    for Scalars { at_secs, step, values } in events {
        // Event { wall_time = 1, step = 2, summary = 5 }
        let mut event = double(1, *at_secs);
        event.push(key(2, 0));
        varint(&mut event, *step as u64);
        // Summary { repeated value = 1 }, Value { tag = 1, simple_value = 2 }
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = bytes(1, tag.as_bytes());
            scalar.push(key(2, 5));
            scalar.extend((*value as f32).to_le_bytes());
            summary.extend(bytes(1, &scalar));
        }
        event.extend(bytes(5, &summary));
        record(&mut file, &event);
    }
    file
}

/// A TFRecord: its length and itself, each with a checksum behind it.
fn record(file: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    for part in [length.as_slice(), data] {
        file.extend(part);
        file.extend(masked_crc(part).to_le_bytes());
    }
}

/// CRC-32C, rotated and offset: so that a checksum of data that holds checksums stays one.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Of a field below 16, with its wire type: 0 varint, 1 eight bytes, 2 bytes with their length, 5 four bytes.
fn key(field: u8, wire_type: u8) -> u8 {
    field << 3 | wire_type
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [[key(field, 1)].as_slice(), &value.to_le_bytes()].concat()
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut to = vec![key(field, 2)];
    varint(&mut to, value.len() as u64);
    to.extend(value);
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same events, written by TensorBoard itself: `tests/golden/event_files.py`.
    #[test]
    fn what_is_written_is_what_tensorboard_writes() {
        let events = [
            Scalars {
                at_secs: 1.7e9,
                step: 1,
                values: vec![("train/loss".into(), 2.5), ("train/learning_rate".into(), 0.0)],
            },
            Scalars { at_secs: 1.7e9 + 0.25, step: 300, values: vec![("eval/perplexity".into(), 1e10)] },
            Scalars { at_secs: 1.7e9 + 1.0, step: 70_000, values: vec![("train/loss".into(), 0.1)] },
        ];
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/golden/data/events.out.tfevents.golden");
        assert_eq!(write(1.7e9 - 1.0, &events), std::fs::read(path).unwrap());
    }

    /// CRC-32C bit by bit, as its polynomial defines it.
    fn plain_crc(data: &[u8]) -> u32 {
        !data.iter().fold(!0, |crc: u32, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
        })
    }

    #[test]
    fn every_record_is_framed_by_its_length_and_checksums() {
        let scalars =
            |step| Scalars { at_secs: 1.0, step, values: vec![("train/loss".into(), step as f64); step] };
        let file = write(0.0, &[scalars(1), scalars(20)]);
        let (mut rest, mut records) = (file.as_slice(), 0);
        let take = |rest: &mut &[u8], count: usize| {
            let (part, behind) = rest.split_at(count);
            *rest = behind;
            part.to_vec()
        };
        let check = |rest: &mut &[u8], data: &[u8]| {
            let crc = plain_crc(data);
            let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
            assert_eq!(take(rest, 4), masked.to_le_bytes());
        };
        while !rest.is_empty() {
            let length = take(&mut rest, 8);
            check(&mut rest, &length);
            let data = take(&mut rest, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            check(&mut rest, &data);
            records += 1;
        }
        assert_eq!((records, plain_crc(b"123456789")), (3, 0xe306_9283));
    }
}
