//! A thread that tells Python that an opening has ended. The client's own threads never wait for the GIL: they relay.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use pyo3::prelude::*;

/// The callbacks' thread, from the first one on.
#[derive(Default)]
pub(crate) struct Notifier(Option<(Sender<Py<PyAny>>, JoinHandle<()>)>);

impl Notifier {
    /// Where to send the callbacks that are due.
    #[expect(
        clippy::disallowed_methods,
        reason = "one for each opening, which are bounded; and the client's threads must not wait here"
    )]
    pub(crate) fn sender(&mut self) -> io::Result<Sender<Py<PyAny>>> {
        if let Some((sender, _)) = &self.0 {
            return Ok(sender.clone());
        }
        let (sender, due) = channel();
        let thread = std::thread::Builder::new()
            .name("ech-notify".to_owned())
            .spawn(move || run(&due))?;
        self.0 = Some((sender.clone(), thread));
        Ok(sender)
    }

    /// The thread, which ends when nothing can become due any more.
    pub(crate) fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.0.take().map(|(_, thread)| thread)
    }
}

fn run(due: &Receiver<Py<PyAny>>) {
    while let Ok(first) = due.recv() {
        // The interpreter may be at its end.
        let told = Python::try_attach(|py| {
            for callback in std::iter::once(first).chain(due.try_iter()) {
                if let Err(error) = callback.call0(py) {
                    // A loop that was closed takes no calls; whoever closed it waits for nothing.
                    error.write_unraisable(py, None);
                }
            }
        });
        if told.is_none() {
            return;
        }
    }
}
