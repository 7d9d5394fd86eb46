//! Sets of ports.

use std::ops::RangeInclusive;

use crate::mistake::Mistake;

/// The ports of one rule.
#[derive(Debug, Default)]
pub(crate) struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    /// A port, or a range of ports with its ends.
    pub(crate) fn add(&mut self, ports: &str) -> Result<(), Mistake> {
        let mistake = || Mistake::Ports(ports.to_owned());
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (port(first), port(last));
        let (Some(first), Some(last)) = (first, last) else {
            return Err(mistake());
        };
        if first > last {
            return Err(mistake());
        }
        self.0.push(first..=last);
        Ok(())
    }

    /// Every port where none was given.
    pub(crate) fn contain(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|range| range.contains(&port))
    }
}

fn port(text: &str) -> Option<u16> {
    let text = text.trim();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| is_number && port > 0)
}
