//! Changes inputs at random, from a seed: bytes anywhere, and values where a line is JSON.

use serde_json::{Number, Value, json};

/// Numbers from a seed (splitmix64), the same everywhere.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, 0 when there is none.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % (n as u64).max(1)) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Numbers at the edges of what is usual.
const ODD: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x0010_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// `input` changed in one to four places, at most `most` bytes long; `other` is what pieces may be
/// taken of.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng, most: usize) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..=rng.below(4) {
        if rng.one_in(2) && json_line(&mut out, rng) {
            continue;
        }
        bytes(&mut out, other, rng);
    }
    out.truncate(most);
    out
}

fn bytes(out: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.below(out.len());
    match rng.below(8) {
        0 if !out.is_empty() => out[at] ^= 1 << rng.below(8),
        1 if !out.is_empty() => out[at] = rng.draw() as u8,
        2 => {
            let n = 1 << rng.below(4);
            let odd = ODD[rng.below(ODD.len())].to_le_bytes();
            for (to, from) in out.iter_mut().skip(at).zip(&odd[..n]) {
                *to = *from;
            }
        }
        3 => out.truncate(at),
        4 => {
            let end = (at + 1 + rng.below(16)).min(out.len());
            out.drain(at.min(end)..end);
        }
        5 => {
            let n = 1 + rng.below(64);
            let again: Vec<u8> = out.iter().skip(at).take(n).copied().collect();
            let to = rng.below(out.len() + 1);
            out.splice(to..to, again);
        }
        6 => {
            let from = rng.below(other.len());
            let piece = other.iter().skip(from).take(1 + rng.below(64)).copied();
            out.splice(at..at, piece);
        }
        _ => out.insert(at.min(out.len()), rng.draw() as u8),
    }
}

/// Changes one value in one line that is JSON; false when the line is none.
fn json_line(out: &mut Vec<u8>, rng: &mut Rng) -> bool {
    let lines = out.split(|b| *b == b'\n').count();
    let chosen = rng.below(lines);
    let begin: usize = out
        .split(|b| *b == b'\n')
        .take(chosen)
        .map(|l| l.len() + 1)
        .sum();
    let length = out[begin..].iter().take_while(|b| **b != b'\n').count();
    let Ok(mut value) = serde_json::from_slice::<Value>(&out[begin..begin + length]) else {
        return false;
    };
    let mut left = rng.below(count(&value));
    change(&mut value, &mut left, rng);
    let text = value.to_string();
    out.splice(begin..begin + length, text.into_bytes());
    true
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(a) => a.iter().map(count).sum(),
        Value::Object(o) => o.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Changes the value of number `left`, counted from the root; true when that was in here.
fn change(value: &mut Value, left: &mut usize, rng: &mut Rng) -> bool {
    if *left == 0 {
        *value = changed(std::mem::take(value), rng);
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(a) => a.iter_mut().any(|v| change(v, left, rng)),
        Value::Object(o) => o.values_mut().any(|v| change(v, left, rng)),
        _ => false,
    }
}

fn changed(value: Value, rng: &mut Rng) -> Value {
    if rng.one_in(6) {
        return another(rng);
    }
    match value {
        Value::Number(_) => number(rng),
        Value::Bool(b) => Value::Bool(!b),
        Value::String(s) => text(s, rng),
        Value::Array(mut a) => {
            let at = rng.below(a.len());
            match rng.below(3) {
                0 if !a.is_empty() => drop(a.remove(at)),
                1 if !a.is_empty() => {
                    for _ in 0..=rng.below(4) {
                        a.push(a[at].clone());
                    }
                }
                _ => a.push(another(rng)),
            }
            Value::Array(a)
        }
        Value::Object(mut o) => {
            let keys: Vec<String> = o.keys().cloned().collect();
            let at = rng.below(keys.len());
            match keys.get(at) {
                Some(key) if rng.one_in(2) => drop(o.remove(key)),
                Some(key) => {
                    let from = keys[rng.below(keys.len())].clone();
                    let taken = o.get(&from).cloned().unwrap_or_default();
                    o.insert(key.clone(), taken);
                }
                None => drop(o.insert("name".into(), another(rng))),
            }
            Value::Object(o)
        }
        Value::Null => another(rng),
    }
}

fn another(rng: &mut Rng) -> Value {
    match rng.below(7) {
        0 => Value::Null,
        1 => json!([]),
        2 => json!({}),
        3 => Value::Bool(rng.one_in(2)),
        4 => text(String::new(), rng),
        _ => number(rng),
    }
}

fn number(rng: &mut Rng) -> Value {
    let odd = ODD[rng.below(ODD.len())];
    let float = |f: f64| Number::from_f64(f).map_or(Value::Null, Value::Number);
    match rng.below(6) {
        0 => json!(odd),
        1 => json!(odd.cast_signed()),
        2 => json!(rng.below(2000)),
        3 => float((rng.below(4000) as f64 - 2000.0) / 7.0),
        4 => float([1e308, -1e308, 1e-308, -0.0, 1e18, -1e-9][rng.below(6)]),
        _ => float(f64::from_bits(rng.draw())),
    }
}

fn text(mut s: String, rng: &mut Rng) -> Value {
    match rng.below(7) {
        0 => s.clear(),
        1 => s = s.repeat(2 + rng.below(40)),
        2 => s.insert(0, '-'),
        3 => s.push_str(["\u{0}", "\n", "ä", "/..", "\u{1b}[0m", "'", "%", "]]>"][rng.below(8)]),
        4 => s = ["..", "/", "guest", "0.0.0.0/0", "255.255.255.255/32", "h1"][rng.below(6)].into(),
        5 => {
            s.pop();
        }
        _ => s = "x".repeat(1 << rng.below(12)),
    }
    Value::String(s)
}
