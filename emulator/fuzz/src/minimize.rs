//! Makes a failing input smaller while it still fails.

/// The smallest input that was found for which `fails` is true, as it is for `data`: pieces are taken away, from halves
/// down to single bytes, then what is left is replaced by zeros where that changes nothing.
pub fn minimize(data: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut best = data.to_vec();
    loop {
        let before = best.len();
        let mut piece = best.len().div_ceil(2);
        while piece > 0 {
            shorten(&mut best, piece, &mut fails);
            piece /= 2;
        }
        if best.len() == before {
            break;
        }
    }
    for at in 0..best.len() {
        let byte = std::mem::replace(&mut best[at], 0);
        if byte != 0 && !fails(&best) {
            best[at] = byte;
        }
    }
    best
}

fn shorten(best: &mut Vec<u8>, piece: usize, fails: &mut impl FnMut(&[u8]) -> bool) {
    let mut at = 0;
    while at < best.len() {
        let end = (at + piece).min(best.len());
        let shorter = [&best[..at], &best[end..]].concat();
        if fails(&shorter) {
            *best = shorter;
        } else {
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_stays() {
        let data: Vec<u8> = (0..=255).collect();
        let fails = |d: &[u8]| d.contains(&7) && d.contains(&200) && d.len() >= 3;
        let mut smallest = minimize(&data, fails);
        smallest.sort_unstable();
        assert_eq!(smallest, [0, 7, 200]);
    }

    #[test]
    fn an_input_that_always_fails_ends_empty() {
        assert!(minimize(&[1; 100], |_| true).is_empty());
    }
}
