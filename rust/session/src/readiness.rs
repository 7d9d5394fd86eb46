//! Which of a session's many ends became ready: each has a waker that puts its stream on one list.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use ech_workers_sync::Mutex;

/// The list of streams with a ready socket, and the driver to wake.
#[derive(Debug)]
pub(crate) struct Readiness<K> {
    list: Mutex<List<K>>,
}

#[derive(Debug)]
struct List<K> {
    ready: Vec<K>,
    driver: Option<Waker>,
}

impl<K: Copy + Send + Sync + 'static> Readiness<K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            list: Mutex::new(List {
                ready: Vec::new(),
                driver: None,
            }),
        })
    }

    /// Says whom to wake from now on.
    pub(crate) fn register(&self, driver: &Waker) {
        let mut list = self.list.lock();
        if !list
            .driver
            .as_ref()
            .is_some_and(|old| old.will_wake(driver))
        {
            list.driver = Some(driver.clone());
        }
    }

    /// Swaps the list with an empty one, so that neither allocates again.
    pub(crate) fn take(&self, into: &mut Vec<K>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut self.list.lock().ready, into);
    }

    /// A waker for the socket of stream `key`.
    pub(crate) fn waker(self: &Arc<Self>, key: K) -> SocketWaker<K> {
        let socket = Arc::new(Socket {
            key,
            listed: AtomicBool::new(false),
            readiness: Arc::clone(self),
        });
        SocketWaker {
            waker: Waker::from(Arc::clone(&socket)),
            socket,
        }
    }
}

#[derive(Debug)]
struct Socket<K> {
    key: K,
    /// Already on the list: a second wake adds nothing.
    listed: AtomicBool,
    readiness: Arc<Readiness<K>>,
}

impl<K: Copy + Send + Sync + 'static> Wake for Socket<K> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let driver = {
            let mut list = self.readiness.list.lock();
            list.ready.push(self.key);
            list.driver.clone()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// The waker of one socket.
#[derive(Debug)]
pub(crate) struct SocketWaker<K> {
    waker: Waker,
    socket: Arc<Socket<K>>,
}

impl<K> SocketWaker<K> {
    pub(crate) const fn waker(&self) -> &Waker {
        &self.waker
    }

    /// To be called when the stream was taken off the list, before its socket is polled.
    pub(crate) fn unlist(&self) {
        self.socket.listed.store(false, Ordering::Release);
    }
}
