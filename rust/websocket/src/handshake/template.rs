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
            let (placeholder, tail) = tail.split_once('}').unwrap_or((tail, ""));
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
