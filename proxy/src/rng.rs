//! The only file that asks for luck.

use std::cell::RefCell;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A short id that no other will have: 12 characters of base 32 without look-alikes.
pub fn id() -> String {
    let mut luck = rand::rng();
    (0..12).map(|_| char::from(LETTERS[luck.random_range(0..LETTERS.len())])).collect()
}

/// A seed for a generator that must be repeatable within the process.
pub fn seed() -> u64 {
    rand::rng().random()
}

/// A secret that nobody guesses: 256 bits as 52 characters of base 32.
pub fn secret() -> String {
    let mut luck = rand::rng();
    (0..52).map(|_| char::from(LETTERS[luck.random_range(0..LETTERS.len())])).collect()
}

/// Luck for the request path: fast, even, and not a secret.
pub fn quick() -> u64 {
    thread_local! {
        static LUCK: RefCell<SmallRng> = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
    }
    LUCK.with(|luck| luck.borrow_mut().random())
}
