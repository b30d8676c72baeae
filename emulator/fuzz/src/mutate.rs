//! Random changes of an input, as fuzzers without feedback make them.
use svadev_sim::rng::Rng;

use crate::MAX_INPUT;

/// Numbers at which things change, as far as a field is wide enough for them.
const INTERESTING: [u64; 24] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    31,
    32,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xfff,
    0x1000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX.cast_unsigned(),
    u64::MAX,
];

/// A new input from one of `corpus`, which is not empty: a few changes, sometimes with a piece of another.
pub fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut data = corpus[rng.index(corpus.len())].clone();
    for _ in 0..1 << rng.below(5) {
        change(&mut data, corpus, rng);
    }
    data.truncate(MAX_INPUT);
    data
}

fn change(data: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    if data.is_empty() {
        data.extend((0..=rng.below(64)).map(|_| byte(rng)));
        return;
    }
    let at = rng.index(data.len());
    let len = 1 + rng.index((data.len() - at).min(64));
    match rng.below(11) {
        0 => data[at] ^= 1 << rng.below(8),
        1 => data[at] = byte(rng),
        2 => data[at] = data[at].wrapping_add(byte(rng) % 33).wrapping_sub(16),
        3 | 4 => put_interesting(data, at, rng),
        5 => drop(data.drain(at..at + len)),
        6 => {
            let piece = data[at..at + len].to_vec();
            insert(data, rng, &piece);
        }
        7 => {
            let piece: Vec<u8> = (0..len).map(|_| byte(rng)).collect();
            insert(data, rng, &piece);
        }
        8 => {
            let to = rng.index(data.len() - len + 1);
            data.copy_within(at..at + len, to);
        }
        // A piece of another, in the place of what follows or between.
        9 | 10 => {
            let other = &corpus[rng.index(corpus.len())];
            if !other.is_empty() {
                let from = rng.index(other.len());
                let piece = &other[from..from + 1 + rng.index(other.len() - from)];
                if rng.below(2) == 0 {
                    data.truncate(at);
                    data.extend_from_slice(piece);
                } else {
                    insert(data, rng, piece);
                }
            }
        }
        _ => unreachable!("there are eleven changes"),
    }
}

fn byte(rng: &mut Rng) -> u8 {
    rng.next_u64().to_le_bytes()[0]
}

fn insert(data: &mut Vec<u8>, rng: &mut Rng, piece: &[u8]) {
    if data.len() + piece.len() <= MAX_INPUT {
        let at = rng.index(data.len() + 1);
        data.splice(at..at, piece.iter().copied());
    }
}

/// Overwrites a little-endian number of 1, 2, 4 or 8 bytes by one near a boundary.
fn put_interesting(data: &mut [u8], at: usize, rng: &mut Rng) {
    let value = rng.pick(&INTERESTING);
    let value = if rng.below(3) == 0 { value << rng.below(64) } else { value };
    let bytes = value.to_le_bytes();
    let width = (1 << rng.below(4)).min(data.len() - at);
    data[at..at + width].copy_from_slice(&bytes[..width]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_and_all_of_them_differ_little() {
        let corpus = vec![vec![1; 100], (0..200).collect(), vec![]];
        let run = |seed| {
            let mut rng = Rng::new(seed);
            (0..2000).map(|_| mutate(&corpus, &mut rng)).collect::<Vec<_>>()
        };
        let inputs = run(1);
        assert_eq!(inputs, run(1));
        assert_ne!(inputs, run(2));
        assert!(inputs.iter().all(|input| input.len() <= MAX_INPUT));
        assert!(inputs.iter().filter(|input| corpus.contains(input)).count() < 200);
    }
}
