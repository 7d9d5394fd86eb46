//! Lists: an entry a line, `#` begins a comment.

use crate::mistake::Mistake;

/// How many lines there are at most.
pub(crate) fn count(list: &[u8]) -> usize {
    list.iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Hands each entry to `add`.
pub(crate) fn each(
    list: &[u8],
    mut add: impl FnMut(&str) -> Result<(), Mistake>,
) -> Result<(), Mistake> {
    // What editors of another system put in front.
    let list = list.strip_prefix(b"\xef\xbb\xbf").unwrap_or(list);
    for (number, line) in list.split(|&byte| byte == b'\n').enumerate() {
        let entry = line.split(|&byte| byte == b'#').next().unwrap_or_default();
        let entry = entry.trim_ascii();
        if entry.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(entry);
        add(&text).map_err(|what| Mistake::Line {
            line: number + 1,
            what: Box::new(what),
        })?;
    }
    Ok(())
}
