//! Diagnostics of the tunnel's own threads, as log lines among its owner's events.

use std::cell::RefCell;
use std::fmt::Write;
use std::sync::{Arc, Once};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Metadata, Subscriber};

use crate::events::{Events, LogLine};
use crate::panics;

/// The module that lines which name a target come from, for those who leave them out.
pub(crate) const TARGETS: &str = "ech_workers_tunnel::targets";

/// Panics of the tunnel's threads become log lines; those of all other threads go where they went before.
static PANICS: Once = Once::new();

thread_local! {
    static GUARD: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
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
            tracing::error!("an error in this program: {what}{place}");
        }));
    });
    GUARD.set(Some(tracing::dispatcher::set_default(dispatch)));
}

/// Where the log lines of one client or server go.
pub(crate) fn dispatch<E: Send + 'static>(events: Arc<Events<E>>, level: LevelFilter) -> Dispatch {
    Dispatch::new(Lines { events, level })
}

struct Lines<E> {
    events: Arc<Events<E>>,
    level: LevelFilter,
}

impl<E: Send + 'static> Subscriber for Lines<E> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' diagnostics are theirs; ours say what a user can do something about.
        *metadata.level() <= self.level && metadata.target().starts_with("ech_workers")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Nobody looks at spans here.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Message(String::new());
        event.record(&mut line);
        let metadata = event.metadata();
        self.events.log(LogLine {
            level: *metadata.level(),
            target: metadata.target(),
            message: line.0,
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {field}={value:?}")
        };
    }
}
