//! hyper's end of one connection to the application, and whose task drives it.
//!
//! ```text
//!   idle, or a request with a body ──→ the connection's own task  (`Upstream::carry`)
//!   a request that is only a head ──→ the task of who waits for the answer, from `send` to its last byte
//! ```
//!
//! A task of its own costs a request two more turns of the scheduler, and memory that is cold by then. A
//! request with a body needs it: the body has to go on while nobody takes the answer.
//!
//! Always true: whoever drives it is woken for it, by the bell that hyper and the engine are given; who
//! stops driving hands it back; a connection that hyper is done with is never polled again.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::body::RequestBody;
use super::wire::{Line, Wire};
use crate::io::Engine;

/// What hyper makes of a connection.
pub type Connection<E> = http1::Connection<TokioIo<Wire<E>>, RequestBody>;

/// It, and what can be seen of it from outside.
type Hyper<E> = (Connection<E>, Rc<Line<E>>);

/// One connection, shared by its own task and by those whose requests it carries.
pub struct Carrier<E: Engine> {
    /// `None`: taken by its own task, to be wound up.
    hyper: RefCell<Option<Hyper<E>>>,
    /// hyper is done with it, or its own task has given it up.
    over: Cell<bool>,
    /// The task of an exchange drives it.
    lent: Cell<bool>,
    /// Its own task knows that something written is not taken, and watches the time.
    watched: Cell<bool>,
    /// Its own task.
    own: RefCell<Waker>,
    bell: Arc<Bell>,
    /// The same, as hyper and the engine know it.
    waker: Waker,
}

/// What the bodies of an exchange know of the connection that carries it.
pub trait Carries {
    /// Whether it has to be driven for anything to come of it. Who drives it is woken for it.
    fn is_lent(&self) -> bool;
    /// Let hyper work.
    fn drive(&self, cx: &Context<'_>);
    /// It is driven by its own task from now on. Once it is idle there is nothing to do at once.
    fn hand_back(&self, idle: bool);
}

impl dyn Carries + '_ {
    /// Poll for something that comes of driving the connection and of nothing else: nobody has to be
    /// woken for it but who drives. Once nobody has to drive any more, it comes as everything does.
    pub fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.is_lent() {
            let came = poll(&mut Context::from_waker(Waker::noop()));
            if came.is_ready() {
                return came;
            }
            self.drive(cx);
            if self.is_lent() {
                return poll(&mut Context::from_waker(Waker::noop()));
            }
        }
        poll(cx)
    }
}

/// Wakes whoever drives the connection; or, while it is being driven, remembers that it was rung.
struct Bell {
    driver: Mutex<Waker>,
    held: AtomicBool,
    rung: AtomicBool,
}

impl<E: Engine> Carrier<E> {
    /// Driven by its own task, which has yet to say who it is.
    pub fn new(connection: Connection<E>, line: Rc<Line<E>>) -> Rc<Self> {
        let bell = Arc::new(Bell {
            driver: Mutex::new(Waker::noop().clone()),
            held: AtomicBool::new(false),
            rung: AtomicBool::new(false),
        });
        Rc::new(Self {
            hyper: RefCell::new(Some((connection, line))),
            over: Cell::new(false),
            lent: Cell::new(false),
            watched: Cell::new(false),
            own: RefCell::new(Waker::noop().clone()),
            waker: Waker::from(bell.clone()),
            bell,
        })
    }

    /// Who calls this drives it from now on, until it is handed back. What happens in `begin` is not
    /// worth a bell.
    pub fn lend<T>(&self, begin: impl FnOnce() -> T) -> T {
        self.lent.set(true);
        self.bell.hold();
        let begun = begin();
        self.bell.release();
        begun
    }

    /// For its own task: let hyper work, unless somebody else does. Ready when hyper is done.
    pub fn poll_own(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.own.borrow().will_wake(cx.waker()) {
            *self.own.borrow_mut() = cx.waker().clone();
        }
        if !self.lent.get() {
            self.poll(cx);
        }
        let blocked = |(_, line): &Hyper<E>| line.blocked().is_some();
        self.watched.set(self.hyper.borrow().as_ref().is_some_and(blocked));
        if self.over.get() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// For its own task, once it is over or to be: what hyper had.
    pub fn take(&self) -> Option<Connection<E>> {
        self.over.set(true);
        let (connection, _) = self.hyper.take().unzip();
        // Whoever waits for an answer hears from hyper that none will come, when it looks.
        if self.lent.get() {
            self.bell.ring();
        }
        connection
    }

    /// Let hyper work, for whoever `cx` belongs to. Whether something that was written is not taken.
    fn poll(&self, cx: &Context<'_>) -> bool {
        self.bell.aim(cx.waker());
        let mut hyper = self.hyper.borrow_mut();
        let Some((connection, line)) = hyper.as_mut().filter(|_| !self.over.get()) else {
            return false;
        };
        self.bell.hold();
        let polled = Pin::new(connection).poll(&mut Context::from_waker(&self.waker));
        let rung = self.bell.release();
        if polled.is_ready() {
            self.over.set(true);
        } else if rung {
            // hyper asks to be polled again.
            cx.waker().wake_by_ref();
        }
        line.blocked().is_some()
    }
}

impl<E: Engine> Carries for Carrier<E> {
    fn is_lent(&self) -> bool {
        self.lent.get() && !self.over.get()
    }

    fn drive(&self, cx: &Context<'_>) {
        let blocked = self.poll(cx);
        // Its own task winds it up, and sees to it that what is written is taken.
        if self.over.get() || blocked && !self.watched.replace(true) {
            self.own.borrow().wake_by_ref();
        }
    }

    fn hand_back(&self, idle: bool) {
        if self.lent.replace(false) {
            let own = self.own.borrow();
            self.bell.aim(&own);
            if !idle {
                own.wake_by_ref();
            }
        }
    }
}

impl Bell {
    fn aim(&self, driver: &Waker) {
        let mut aimed = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        if !aimed.will_wake(driver) {
            // The last trace of a task may go with it: not under the lock.
            let before = std::mem::replace(&mut *aimed, driver.clone());
            drop(aimed);
            drop(before);
        }
    }

    fn hold(&self) {
        self.rung.store(false, Ordering::SeqCst);
        self.held.store(true, Ordering::SeqCst);
    }

    /// Whether it was rung meanwhile.
    fn release(&self) -> bool {
        self.held.store(false, Ordering::SeqCst);
        self.rung.load(Ordering::SeqCst)
    }

    fn ring(&self) {
        // First remembered, then looked whether anybody will ask: one of the two sees the other.
        self.rung.store(true, Ordering::SeqCst);
        if !self.held.load(Ordering::SeqCst) {
            self.driver.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
