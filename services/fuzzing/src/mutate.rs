//! Inputs made from others by small changes, the same ones for the same seed.

/// Makes inputs.
#[derive(Debug)]
pub struct Mutator(u64);

/// Longest input made.
const LONGEST: usize = 4096;
/// Bytes and texts that mean something to one of the parsers.
const WORDS: [&[u8]; 24] = [
    b"\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80",
    b"{{",
    b"}}",
    b"{{.",
    b"- ",
    b": ",
    b"\n",
    b"  ",
    b"\"",
    b"'",
    b"&a ",
    b"*a",
    b"!!int ",
    b"---\n",
    b"in (",
    b"notin (",
    b",",
    b"!",
    b"\xc3\xb6",
    b"\xe2\x80\xa8",
    b"1e999",
    b"\x0b\x0c",
];

impl Mutator {
    /// Makes inputs from this seed on.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        // xorshift64*.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not zero.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).unwrap_or_default() % end
    }

    /// An input made from some of these.
    pub fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds.get(self.below(seeds.len().max(1))).cloned().unwrap_or_default();
        for _ in 0..=self.below(6) {
            let at = self.below(input.len() + 1);
            let end = (at + 1 + self.below(16)).min(input.len());
            match self.below(7) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.next().to_le_bytes()[7],
                2 => drop(input.drain(at..end)),
                3 => {
                    let part = input[at..end].to_vec();
                    let times = 1 + self.below(8);
                    input.splice(at..at, part.repeat(times));
                }
                4 => {
                    let other = &seeds[self.below(seeds.len().max(1)).min(seeds.len() - 1)];
                    let from = self.below(other.len() + 1);
                    let to = (from + self.below(64)).min(other.len());
                    input.splice(at..at, other[from..to].to_vec());
                }
                5 => input.truncate(at),
                _ => drop(input.splice(at..at, WORDS[self.below(WORDS.len())].to_vec())),
            }
        }
        input.truncate(LONGEST);
        input
    }
}
