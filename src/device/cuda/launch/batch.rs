//! What launches and kernels need to know of a micro-batch before it is used.

/// What is known of a micro-batch's tokens and labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchFacts {
    /// Rows that were loaded.
    pub rows: u64,
    /// The first number above all token ids.
    pub tokens_end: u64,
    /// The first number above all labels.
    pub labels_end: u64,
    /// The smallest label that is not one to be ignored and is negative, if any is.
    pub negative_label: Option<i32>,
}

impl BatchFacts {
    /// Of what was loaded.
    pub fn new(tokens: &[u32], labels: &[i32]) -> BatchFacts {
        let ignored = super::super::super::IGNORED_LABEL;
        let negative = labels.iter().copied().filter(|&l| l < 0 && l != ignored);
        let end = |most: Option<u64>| most.map_or(0, |most| most + 1);
        BatchFacts {
            rows: tokens.len() as u64,
            tokens_end: end(tokens.iter().map(|&t| u64::from(t)).max()),
            labels_end: end(labels.iter().filter_map(|&l| u64::try_from(l).ok()).max()),
            negative_label: negative.min(),
        }
    }
}

/// The rows sorted by token and then by row, and of every row its place among them: a counting
/// sort, in time and memory of the rows and the largest token.
pub fn token_order(tokens: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let most = tokens.iter().max().map_or(0, |&most| most as usize);
    let mut next = vec![0u32; most + 2];
    for &token in tokens {
        next[token as usize + 1] += 1;
    }
    for token in 1..next.len() {
        next[token] += next[token - 1];
    }
    let (mut order, mut place) = (vec![0; tokens.len()], vec![0; tokens.len()]);
    for (row, &token) in tokens.iter().enumerate() {
        let at = &mut next[token as usize];
        (order[*at as usize], place[row]) = (row as u32, *at);
        *at += 1;
    }
    (order, place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_token_and_then_by_row() {
        let tokens = [7, 2, 7, 0, 2, 7];
        let (order, place) = token_order(&tokens);
        assert_eq!(order, [3, 1, 4, 0, 2, 5]);
        assert_eq!(place, [3, 1, 4, 0, 2, 5]);
        let tokens = [1, 1, 0];
        assert_eq!(token_order(&tokens), (vec![2, 0, 1], vec![1, 2, 0]));
        assert_eq!(token_order(&[]), (vec![], vec![]));
    }

    #[test]
    fn facts_bound_tokens_and_labels() {
        let facts = BatchFacts::new(&[3, 9, 1], &[-100, 4, 0]);
        assert_eq!((facts.rows, facts.tokens_end, facts.labels_end), (3, 10, 5));
        assert_eq!(facts.negative_label, None);
        assert_eq!(BatchFacts::new(&[0], &[-1]).negative_label, Some(-1));
        assert_eq!(BatchFacts::new(&[0], &[-100]).labels_end, 0);
    }
}
