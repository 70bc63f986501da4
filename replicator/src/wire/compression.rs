//! zstd of bulk frames. One history per direction of a session, so that small frames gain from those before them; each
//! frame is flushed and can be read at once. What does not shrink is sent plain, and looked at again from time to time.
//!
//! The reader trusts no length: a frame gives exactly as many bytes as it says, and it may say no more than fit in one.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::{HEADER, MAX_FRAME};
use crate::error::Error;

/// Cheap: on one core faster than most links.
const LEVEL: i32 = 1;

/// log2 of the history that both sides keep, bytes.
const WINDOW_LOG: u32 = 20;

/// Shorter bodies go plain.
const WORTH: usize = 64;

/// Bytes over which it is judged whether compressing pays …
const TRIAL: u64 = 256 << 10;
/// … and how many go plain before the next trial when it does not.
const PAUSE: u64 = 8 << 20;

/// Room that zstd may need beyond the plain size.
const OVERHEAD: usize = 1 << 10;

/// The writing side of one direction.
pub struct Compressor {
    encoder: Encoder<'static>,
    trial: Trial,
}

/// Whether compressing pays.
#[derive(Debug)]
enum Trial {
    /// Bytes in and out since the judgement began.
    Running { plain: u64, packed: u64 },
    /// Plain bytes that still pass untouched.
    Paused { left: u64 },
}

impl Trial {
    fn begin() -> Self {
        Self::Running { plain: 0, packed: 0 }
    }

    /// Takes part in the judgement: true when these bytes should be compressed.
    fn wants(&mut self, length: u64) -> bool {
        match self {
            Self::Running { .. } => true,
            Self::Paused { left } if *left > length => {
                *left -= length;
                false
            }
            Self::Paused { .. } => {
                *self = Self::begin();
                true
            }
        }
    }

    fn note(&mut self, length: u64, result: u64) {
        let Self::Running { plain, packed } = self else { return };
        *plain += length;
        *packed += result;
        if *plain >= TRIAL {
            // At least a tenth must be gained.
            let pays = *packed * 10 <= *plain * 9;
            *self = if pays { Self::begin() } else { Self::Paused { left: PAUSE } };
        }
    }
}

impl Compressor {
    /// With an empty history.
    pub fn new() -> Result<Self, Error> {
        let mut encoder = Encoder::new(LEVEL).map_err(|error| failed(&error))?;
        encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG)).map_err(|error| failed(&error))?;
        Ok(Self { encoder, trial: Trial::begin() })
    }

    /// Writes `body` compressed, with its plain length before it; false when it should go plain and nothing was written.
    pub(super) fn compress(&mut self, body: &[u8], out: &mut BytesMut) -> Result<bool, Error> {
        if body.len() < WORTH || !self.trial.wants(body.len() as u64) {
            return Ok(false);
        }
        let mut packed = vec![0; body.len() + body.len() / 128 + OVERHEAD];
        let mut buffer = OutBuffer::around(&mut packed[..]);
        let mut input = InBuffer::around(body);
        while input.pos() < body.len() {
            self.encoder.run(&mut input, &mut buffer).map_err(|error| failed(&error))?;
        }
        if self.encoder.flush(&mut buffer).map_err(|error| failed(&error))? != 0 {
            return Err(Error::Protocol("zstd: a frame grew beyond its bound".into()));
        }
        let length = buffer.pos();
        self.trial.note(body.len() as u64, length as u64);
        out.put_u32(body.len() as u32);
        out.put_slice(&packed[..length]);
        Ok(true)
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("trial", &self.trial).finish_non_exhaustive()
    }
}

/// The reading side of one direction.
pub struct Decompressor {
    decoder: Decoder<'static>,
}

impl Decompressor {
    /// With an empty history.
    pub fn new() -> Result<Self, Error> {
        let mut decoder = Decoder::new().map_err(|error| failed(&error))?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(|error| failed(&error))?;
        Ok(Self { decoder })
    }

    /// Reads what [`Compressor::compress`] wrote; the length before it is `length`.
    pub(super) fn decompress(&mut self, length: usize, packed: &[u8]) -> Result<Bytes, Error> {
        if length > MAX_FRAME - HEADER {
            return Err(Error::Protocol(format!("a compressed frame of {length} bytes")));
        }
        // One byte more, to notice what says too little.
        let mut plain = vec![0; length + 1];
        let mut buffer = OutBuffer::around(&mut plain[..]);
        let mut input = InBuffer::around(packed);
        loop {
            let (read, written) = (input.pos(), buffer.pos());
            self.decoder.run(&mut input, &mut buffer).map_err(|error| failed(&error))?;
            if buffer.pos() > length {
                return Err(Error::Protocol(format!(
                    "a compressed frame holds more than its {length} bytes"
                )));
            }
            if (input.pos(), buffer.pos()) == (read, written)
                || input.pos() == packed.len() && buffer.pos() == length
            {
                break;
            }
        }
        if buffer.pos() != length || input.pos() != packed.len() {
            let got = buffer.pos();
            return Err(Error::Protocol(format!("a compressed frame holds {got} of its {length} bytes")));
        }
        plain.truncate(length);
        Ok(plain.into())
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

fn failed(error: &std::io::Error) -> Error {
    Error::Protocol(format!("zstd: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Compressor, Decompressor) {
        (Compressor::new().expect("zstd"), Decompressor::new().expect("zstd"))
    }

    fn pack(compressor: &mut Compressor, body: &[u8]) -> Option<(usize, Vec<u8>)> {
        let mut out = BytesMut::new();
        let packed = compressor.compress(body, &mut out).expect("compresses");
        packed.then(|| (u32::from_be_bytes(out[..4].try_into().expect("four")) as usize, out[4..].to_vec()))
    }

    /// Bytes that do not compress.
    fn noise(length: usize, mut seed: u64) -> Vec<u8> {
        std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .take(length)
        .collect()
    }

    #[test]
    fn small_frames_gain_from_those_before_them() {
        let (mut compressor, mut decompressor) = pair();
        let mut sizes = Vec::new();
        for number in 0..50 {
            let body = format!(
                "order {number}: customer {} bought a thing for {} euros, paid by card, delivered to the door",
                number * 7,
                number
            );
            let (length, packed) = pack(&mut compressor, body.as_bytes()).expect("worth it");
            sizes.push(packed.len());
            assert_eq!(decompressor.decompress(length, &packed).expect("own"), body.as_bytes());
        }
        assert!(sizes[49] * 2 < sizes[0], "{sizes:?}");
    }

    #[test]
    fn what_does_not_shrink_goes_plain_and_is_tried_again() {
        let (mut compressor, mut decompressor) = pair();
        let (mut packed_bytes, mut plain_bytes) = (0u64, 0u64);
        for number in 0..400 {
            let body = noise(100_000, number);
            match pack(&mut compressor, &body) {
                Some((length, packed)) => {
                    packed_bytes += length as u64;
                    assert_eq!(decompressor.decompress(length, &packed).expect("own"), body);
                }
                None => plain_bytes += body.len() as u64,
            }
        }
        assert!(packed_bytes > 2 * TRIAL, "never tried again: {packed_bytes}");
        assert!(plain_bytes > 10 * packed_bytes, "{packed_bytes} of {plain_bytes} were compressed in vain");
        // It shrinks again: noticed within one pause.
        let shrinking = (0..200).filter(|_| pack(&mut compressor, &vec![b'a'; 100_000]).is_some()).count();
        assert!(shrinking > 100, "{shrinking}");
    }

    #[test]
    fn a_bomb_and_a_lie_are_refused() {
        let mut compressor = Compressor::new().expect("zstd");
        let (length, packed) = pack(&mut compressor, &vec![0; 1_000_000]).expect("worth it");
        assert!(packed.len() < 200);
        for lie in [0, 1, 63, length - 1, length + 1, MAX_FRAME] {
            let error = Decompressor::new().expect("zstd").decompress(lie, &packed).expect_err("a lie");
            assert!(matches!(error, Error::Protocol(_)));
        }
        // A bomb of many bytes with a window larger than ours.
        let mut encoder = Encoder::new(19).expect("zstd");
        encoder.set_parameter(CParameter::WindowLog(27)).expect("parameter");
        let mut bomb = vec![0; 1 << 16];
        let mut buffer = OutBuffer::around(&mut bomb[..]);
        encoder.run(&mut InBuffer::around(&vec![7; 8 << 20]), &mut buffer).expect("room");
        encoder.flush(&mut buffer).expect("room");
        let length = buffer.pos();
        Decompressor::new()
            .expect("zstd")
            .decompress(MAX_FRAME - HEADER, &bomb[..length])
            .expect_err("too large a window");
    }
}
