//! Diagnostics of the tunnel's own threads, as log lines among its owner's events.
//!
//! What a line is about comes from its fields `layer` and `code`, and from the span that it is written in: that of a session or
//! of a dial.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Once};

use ech_workers_session::Refusal;
use ech_workers_sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Metadata, Span, Subscriber};

use crate::events::{About, Events, LogLine};
use crate::failure::{Code, Layer};
use crate::panics;

/// The module that lines which name a target come from, for those who leave them out.
pub(crate) const TARGETS: &str = "ech_workers_tunnel::targets";

/// Panics of the tunnel's threads become log lines; those of all other threads go where they went before.
static PANICS: Once = Once::new();

thread_local! {
    static GUARD: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
    /// The spans that this thread is in, the innermost last.
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

/// For lines about a session, and on the client the number of its server.
pub(crate) fn session(number: u64, upstream: Option<u32>) -> Span {
    // As important as the most important line in it, or that would not know its span.
    tracing::error_span!("session", session = number, upstream)
}

/// For lines about a dial to a server.
pub(crate) fn dial(upstream: u32) -> Span {
    tracing::error_span!("dial", upstream)
}

/// Sends what is logged on this thread from now on to `dispatch`.
pub(crate) fn adopt_thread(dispatch: &Dispatch) {
    PANICS.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if GUARD.with(|guard| guard.try_borrow().is_ok_and(|guard| guard.is_none())) {
                return before(panic);
            }
            let place = panic
                .location()
                .map_or_else(String::new, |place| format!(" ({place})"));
            let what = panics::text(panic.payload());
            tracing::error!(
                layer = Layer::Local.name(),
                code = Code::Internal.as_str(),
                "an error in this program: {what}{place}"
            );
        }));
    });
    GUARD.set(Some(tracing::dispatcher::set_default(dispatch)));
}

/// Logs that a target could not be reached.
pub(crate) fn say_target_failed(refusal: &Refusal) {
    let code = Code::of(refusal.status);
    tracing::debug!(
        target: TARGETS,
        layer = Layer::Target.name(),
        code = code.as_str(),
        "a target could not be reached: {}",
        refusal.reason
    );
}

/// Where the log lines of one client or server go.
pub(crate) fn dispatch<E: Send + 'static>(events: Arc<Events<E>>, level: LevelFilter) -> Dispatch {
    Dispatch::new(Lines {
        events,
        level,
        spans: Mutex::default(),
    })
}

struct Lines<E> {
    events: Arc<Events<E>>,
    level: LevelFilter,
    spans: Mutex<Spans>,
}

/// The spans that somebody holds.
#[derive(Default)]
struct Spans {
    last: u64,
    held: HashMap<Id, Held>,
}

struct Held {
    about: About,
    holders: usize,
}

impl<E> Lines<E> {
    /// What the spans that this thread is in say.
    fn about(&self) -> About {
        let entered = ENTERED.with_borrow(|entered| entered.last().cloned());
        let Some(id) = entered else {
            return About::default();
        };
        let spans = self.spans.lock();
        spans
            .held
            .get(&id)
            .map_or_else(About::default, |span| span.about.clone())
    }
}

impl<E: Send + 'static> Subscriber for Lines<E> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' diagnostics are theirs; ours say what a user can do something about.
        *metadata.level() <= self.level && metadata.target().starts_with("ech_workers")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut line = Line::default();
        attributes.record(&mut line);
        let mut spans = self.spans.lock();
        spans.last += 1;
        let id = Id::from_u64(spans.last);
        let held = Held {
            about: line.about,
            holders: 1,
        };
        spans.held.insert(id.clone(), held);
        id
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(span) = self.spans.lock().held.get_mut(id) {
            span.holders += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut spans = self.spans.lock();
        let Some(span) = spans.held.get_mut(&id) else {
            return false;
        };
        span.holders -= 1;
        if span.holders > 0 {
            return false;
        }
        spans.held.remove(&id);
        true
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line {
            message: String::new(),
            about: self.about(),
        };
        event.record(&mut line);
        let metadata = event.metadata();
        self.events.log(LogLine {
            level: *metadata.level(),
            target: metadata.target(),
            message: line.message,
            about: line.about,
        });
    }

    fn enter(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
    }

    fn exit(&self, id: &Id) {
        ENTERED.with_borrow_mut(|entered| {
            if let Some(place) = entered.iter().rposition(|one| one == id) {
                entered.remove(place);
            }
        });
    }
}

#[derive(Default)]
struct Line {
    message: String,
    about: About,
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "session" => self.about.session = Some(value),
            "upstream" => self.about.upstream = u32::try_from(value).ok(),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "layer" => self.about.layer = Some(value.to_owned()),
            "code" => self.about.code = Some(value.to_owned()),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.message, " {field}={value:?}")
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::events::Next;

    fn written(write: impl FnOnce()) -> Vec<LogLine> {
        let events = Arc::<Events<()>>::default();
        let log = dispatch(Arc::clone(&events), LevelFilter::DEBUG);
        tracing::dispatcher::with_default(&log, write);
        let mut lines = Vec::new();
        while let Next::Log(line) = events.next(Some(Duration::ZERO)) {
            lines.push(line);
        }
        lines
    }

    #[test]
    fn a_line_knows_the_session_that_it_is_written_in_and_says_what_failed() {
        let lines = written(|| {
            let outer = session(7, Some(2));
            outer.in_scope(|| {
                tracing::debug!(layer = "tcp", code = "tcp-reset", "it {}", "broke");
                dial(3).in_scope(|| tracing::debug!("another server is dialled"));
                tracing::debug!(kept = 5, "it goes on");
            });
            tracing::debug!("outside");
        });
        let found: Vec<_> = lines
            .iter()
            .map(|line| (line.message.as_str(), line.about.clone()))
            .collect();
        let of_session = About {
            session: Some(7),
            upstream: Some(2),
            ..About::default()
        };
        let broke = About {
            layer: Some("tcp".to_owned()),
            code: Some("tcp-reset".to_owned()),
            ..of_session.clone()
        };
        let of_dial = About {
            upstream: Some(3),
            ..About::default()
        };
        assert_eq!(
            found,
            [
                ("it broke", broke),
                ("another server is dialled", of_dial),
                ("it goes on kept=5", of_session),
                ("outside", About::default()),
            ]
        );
    }

    #[test]
    fn a_span_is_forgotten_with_its_last_holder() {
        let events = Arc::<Events<()>>::default();
        let lines = Lines {
            events,
            level: LevelFilter::DEBUG,
            spans: Mutex::default(),
        };
        let log = Dispatch::new(lines);
        tracing::dispatcher::with_default(&log, || {
            let first = session(1, None);
            let second = first.clone();
            let held = || {
                let lines = log.downcast_ref::<Lines<()>>().unwrap();
                lines.spans.lock().held.len()
            };
            drop(first);
            assert_eq!(held(), 1);
            drop(second);
            assert_eq!(held(), 0);
        });
    }
}
