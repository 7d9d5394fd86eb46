use thiserror::Error;

use super::list_holds;

/// The header fields of the upgrade request, in the order in which they are sent.
///
/// A value may hold placeholders:
///
/// | placeholder | stands for |
/// |---|---|
/// | `{host}` | the Host value, with its port if it has one |
/// | `{key}` | the Sec-WebSocket-Key |
/// | `{protocol}` | the token; a field with it is left out where there is no token |
///
/// All else is sent as it stands, names too: `Origin: https://{host}` becomes `Origin: https://example.org:8443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestTemplate {
    fields: Vec<Field>,
}

/// What is wrong with a template.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateError {
    /// Not a token (RFC 9110 section 5.1).
    #[error("invalid field name {0:?}")]
    Name(String),
    /// Only printable ASCII is sent.
    #[error("invalid value of the field {0}")]
    Value(String),
    /// A placeholder that does not exist, or an opening brace without a closing one.
    #[error("unknown placeholder in the field {0}")]
    Placeholder(String),
    /// A field that RFC 6455 section 4.1 asks for, and the value it needs.
    #[error("the field {name} is missing, or does not say {value}")]
    Missing {
        /// The field.
        name: &'static str,
        /// What it must hold.
        value: &'static str,
    },
    /// A field that must be there once is there again.
    #[error("the field {0} is there twice")]
    Duplicate(&'static str),
    /// A field that would make the server do what the client cannot: extensions, or a request body.
    #[error("the field {0} has no place in an upgrade request of ours")]
    Forbidden(&'static str),
}

/// What the placeholders stand for.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) host: &'a str,
    pub(super) key: &'a str,
    pub(super) protocol: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    name: String,
    value: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Host,
    Key,
    Protocol,
}

/// RFC 6455 section 4.1, and our token. `None`: the value is a list that must hold the word.
const REQUIRED: [(&str, &str, Option<Part>); 6] = [
    ("Host", "{host}", Some(Part::Host)),
    ("Upgrade", "websocket", None),
    ("Connection", "Upgrade", None),
    ("Sec-WebSocket-Version", "13", None),
    ("Sec-WebSocket-Key", "{key}", Some(Part::Key)),
    ("Sec-WebSocket-Protocol", "{protocol}", Some(Part::Protocol)),
];

/// The fields of the example in section 1.2.
const EXAMPLE: [(&str, &str); 7] = [
    ("Host", "{host}"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "{key}"),
    ("Origin", "https://{host}"),
    ("Sec-WebSocket-Protocol", "{protocol}"),
    ("Sec-WebSocket-Version", "13"),
];

const FORBIDDEN: [&str; 3] = [
    "Sec-WebSocket-Extensions",
    "Content-Length",
    "Transfer-Encoding",
];

impl RequestTemplate {
    /// A template of `(name, value)` pairs.
    ///
    /// # Errors
    /// [`TemplateError`] if the request would not be a valid upgrade request, would not carry the token, or would offer
    /// an extension.
    pub fn new(fields: &[(&str, &str)]) -> Result<Self, TemplateError> {
        let template = Self {
            fields: fields
                .iter()
                .map(|(name, value)| Field::parse(name, value))
                .collect::<Result<_, _>>()?,
        };
        template.check()?;
        Ok(template)
    }

    /// Appends the fields, each with its line end.
    pub(super) fn write(&self, out: &mut Vec<u8>, values: Values<'_>) {
        for field in &self.fields {
            field.write(out, values);
        }
    }

    fn check(&self) -> Result<(), TemplateError> {
        for (name, value, part) in REQUIRED {
            let mut found = self.named(name);
            let complete = found.next().is_some_and(|field| match &part {
                Some(part) => field.value == std::slice::from_ref(part),
                None => matches!(&field.value[..], [Part::Text(text)] if list_holds(text.as_bytes(), value)),
            });
            if !complete {
                return Err(TemplateError::Missing { name, value });
            }
            if found.next().is_some() {
                return Err(TemplateError::Duplicate(name));
            }
        }
        match FORBIDDEN
            .into_iter()
            .find(|name| self.named(name).next().is_some())
        {
            Some(name) => Err(TemplateError::Forbidden(name)),
            None => Ok(()),
        }
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Field> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
    }
}

impl Default for RequestTemplate {
    /// The plain request of RFC 6455 section 1.2, which looks like no browser's.
    fn default() -> Self {
        Self::new(&EXAMPLE).expect("a test writes this request")
    }
}

impl Field {
    fn parse(name: &str, value: &str) -> Result<Self, TemplateError> {
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return Err(TemplateError::Name(name.to_owned()));
        }
        let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !printable || value.trim() != value {
            return Err(TemplateError::Value(name.to_owned()));
        }
        let mut parts = Vec::new();
        let mut rest = value;
        while let Some((text, tail)) = rest.split_once('{') {
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            let Some((placeholder, tail)) = tail.split_once('}') else {
                return Err(TemplateError::Placeholder(name.to_owned()));
            };
            parts.push(match placeholder {
                "host" => Part::Host,
                "key" => Part::Key,
                "protocol" => Part::Protocol,
                _ => return Err(TemplateError::Placeholder(name.to_owned())),
            });
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            value: parts,
        })
    }

    fn write(&self, out: &mut Vec<u8>, values: Values<'_>) {
        if values.protocol.is_none() && self.value.contains(&Part::Protocol) {
            return;
        }
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(b": ");
        for part in &self.value {
            let text = match part {
                Part::Text(text) => text,
                Part::Host => values.host,
                Part::Key => values.key,
                Part::Protocol => values.protocol.unwrap_or_default(),
            };
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default, with the fields that `change` makes of each.
    fn changed(
        change: impl Fn(&'static str, &'static str) -> Vec<(&'static str, &'static str)>,
    ) -> Result<RequestTemplate, TemplateError> {
        let fields: Vec<_> = EXAMPLE
            .iter()
            .flat_map(|(name, value)| change(name, value))
            .collect();
        RequestTemplate::new(&fields)
    }

    #[test]
    fn order_names_and_case_are_the_template_s() {
        let template = RequestTemplate::new(&[
            ("host", "{host}"),
            ("Sec-WebSocket-Version", "13"),
            ("X-Where", "at {host}, {host}"),
            ("Sec-WebSocket-Protocol", "{protocol}"),
            ("Sec-WebSocket-KEY", "{key}"),
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
        ])
        .unwrap();
        let mut out = Vec::new();
        let values = Values {
            host: "h.test",
            key: "K",
            protocol: Some("{key}"),
        };
        template.write(&mut out, values);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.split_terminator("\r\n").collect();
        assert_eq!(
            lines,
            [
                "host: h.test",
                "Sec-WebSocket-Version: 13",
                "X-Where: at h.test, h.test",
                // A value is not searched for placeholders.
                "Sec-WebSocket-Protocol: {key}",
                "Sec-WebSocket-KEY: K",
                "Connection: keep-alive, Upgrade",
                "Upgrade: websocket",
            ]
        );
    }

    #[test]
    fn a_template_without_a_field_that_the_handshake_needs_is_refused() {
        for (name, value, _) in REQUIRED {
            let missing = TemplateError::Missing { name, value };
            let without = changed(|field, value| {
                if field == name {
                    vec![]
                } else {
                    vec![(field, value)]
                }
            });
            assert_eq!(without, Err(missing.clone()));
            let other =
                changed(|field, value| vec![(field, if field == name { "other" } else { value })]);
            assert_eq!(other, Err(missing));
            let twice = changed(|field, value| {
                if field == name {
                    vec![(field, value); 2]
                } else {
                    vec![(field, value)]
                }
            });
            assert_eq!(twice, Err(TemplateError::Duplicate(name)));
        }
    }

    #[test]
    fn a_template_that_offers_what_we_cannot_do_is_refused() {
        for name in FORBIDDEN {
            let with = changed(|field, value| match field {
                "Origin" => vec![(name, "x")],
                _ => vec![(field, value)],
            });
            assert_eq!(with, Err(TemplateError::Forbidden(name)));
        }
    }

    #[test]
    fn a_template_that_would_break_the_request_apart_is_refused() {
        let with = |name, value| {
            changed(move |field, old| match field {
                "Origin" => vec![(name, value)],
                _ => vec![(field, old)],
            })
            .map(|_| ())
        };
        assert_eq!(with("Origin", ""), Ok(()));
        for name in ["", "a b", "a:", "é", "a\r\n"] {
            assert_eq!(with(name, "x"), Err(TemplateError::Name(name.into())));
        }
        for value in ["a\r\nb", " a", "a ", "é", "\0"] {
            assert_eq!(with("X", value), Err(TemplateError::Value("X".into())));
        }
        for value in ["{origin}", "{", "{host", "a{}b"] {
            assert_eq!(
                with("X", value),
                Err(TemplateError::Placeholder("X".into()))
            );
        }
    }
}
