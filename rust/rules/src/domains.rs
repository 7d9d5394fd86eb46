//! Sets of domain names, for millions of them: one text, and a table of where each name begins in it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::lines;
use crate::mistake::Mistake;

/// The longest name (RFC 1035 section 2.3.4), as text without the final dot.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// One for all sets, so that the parts of a name are hashed once for all rules. Its key is random: nobody can make names
/// that collide.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A set of names in lower case.
#[derive(Default)]
pub(crate) struct Names {
    /// Each name with its length in front.
    text: Vec<u8>,
    /// Where each name begins.
    starts: HashTable<u32>,
}

impl Names {
    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    fn reserve(&mut self, names: usize, bytes: usize) {
        self.text.reserve_exact(bytes);
        let text = &self.text;
        self.starts.reserve(names, |&start| hash(at(text, start)));
    }

    fn insert(&mut self, name: &[u8]) -> Result<(), Mistake> {
        let start = u32::try_from(self.text.len()).map_err(|_| Mistake::Large)?;
        let length = u8::try_from(name.len()).map_err(|_| Mistake::Large)?;
        let text = &self.text;
        let place = self.starts.entry(
            hash(name),
            |&start| at(text, start) == name,
            |&start| hash(at(text, start)),
        );
        if let Entry::Vacant(place) = place {
            place.insert(start);
            self.text.push(length);
            self.text.extend_from_slice(name);
        }
        Ok(())
    }

    fn contains(&self, hash: u64, name: &[u8]) -> bool {
        self.starts
            .find(hash, |&start| at(&self.text, start) == name)
            .is_some()
    }

    fn shrink(&mut self) {
        self.text.shrink_to_fit();
        let text = &self.text;
        self.starts.shrink_to_fit(|&start| hash(at(text, start)));
    }
}

fn at(text: &[u8], start: u32) -> &[u8] {
    match text.get(start as usize..) {
        Some([length, rest @ ..]) => rest.get(..usize::from(*length)).unwrap_or_default(),
        _ => &[],
    }
}

fn hash(name: &[u8]) -> u64 {
    HASHER.hash_one(name)
}

/// The domains of one rule.
#[derive(Default)]
pub(crate) struct Domains {
    /// These, and all below them.
    below: Names,
    exact: Names,
    keywords: Vec<Box<str>>,
}

impl Domains {
    /// A domain and everything below it; `*.` or `.` in front says nothing else.
    pub(crate) fn add(&mut self, domain: &str) -> Result<(), Mistake> {
        self.below.insert(checked(bare(domain), domain)?.as_bytes())
    }

    pub(crate) fn add_exact(&mut self, name: &str) -> Result<(), Mistake> {
        self.exact.insert(checked(name, name)?.as_bytes())
    }

    pub(crate) fn add_keyword(&mut self, keyword: &str) -> Result<(), Mistake> {
        let is_part = (1..=NAME_MAX).contains(&keyword.len())
            && keyword
                .bytes()
                .all(|byte| byte == b'.' || is_of_label(byte));
        if !is_part {
            return Err(Mistake::Keyword(keyword.to_owned()));
        }
        self.keywords
            .push(keyword.to_ascii_lowercase().into_boxed_str());
        Ok(())
    }

    pub(crate) fn add_list(&mut self, list: &[u8]) -> Result<(), Mistake> {
        self.below.reserve(lines::count(list), list.len() + 1);
        lines::each(list, |entry| self.add(entry))?;
        self.below.shrink();
        Ok(())
    }

    pub(crate) fn contain(&self, name: &Parts) -> bool {
        (!self.exact.is_empty() && self.exact.contains(name.whole().0, name.whole().1))
            || (!self.below.is_empty()
                && name
                    .each()
                    .any(|(hash, domain)| self.below.contains(hash, domain)))
            || self
                .keywords
                .iter()
                .any(|keyword| name.text().contains(&**keyword))
    }
}

fn bare(domain: &str) -> &str {
    let domain = domain.strip_prefix('*').unwrap_or(domain);
    domain.strip_prefix('.').unwrap_or(domain)
}

/// The name in lower case without the final dot.
fn checked(name: &str, given: &str) -> Result<String, Mistake> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.parse::<IpAddr>().is_ok() {
        return Err(Mistake::Address(given.to_owned()));
    }
    let is_name = name.len() <= NAME_MAX
        && name
            .split('.')
            .all(|label| (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(is_of_label));
    if is_name {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(Mistake::Domain(given.to_owned()))
    }
}

const fn is_of_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// A name that is looked up, and the domains it lies in, each with its hash: made once, however many rules there are.
pub(crate) struct Parts {
    name: String,
    /// Where the domains begin, the whole name first.
    hashes: Vec<(u64, u8)>,
}

impl Parts {
    /// `None`: no name is as long.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() || name.len() > NAME_MAX {
            return None;
        }
        let name = name.to_ascii_lowercase();
        let dots = name.bytes().enumerate().filter(|&(_, byte)| byte == b'.');
        let starts = std::iter::once(0).chain(dots.map(|(dot, _)| dot + 1));
        let hashes = starts
            .map(|start| {
                let domain = name.as_bytes().get(start..).unwrap_or_default();
                (hash(domain), start as u8)
            })
            .collect();
        Some(Self { name, hashes })
    }

    fn text(&self) -> &str {
        &self.name
    }

    fn whole(&self) -> (u64, &[u8]) {
        self.each().next().unwrap_or_default()
    }

    fn each(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.hashes.iter().map(|&(hash, start)| {
            let domain = self.name.as_bytes().get(usize::from(start)..);
            (hash, domain.unwrap_or_default())
        })
    }
}
