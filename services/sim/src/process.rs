//! A simulated process: tasks that can be held still while time goes on, and ended without a word.

use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use muster_ports::Spawner;
use muster_ports::host::Task;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::world::World;

thread_local! {
    /// Name of the process whose task is polled now.
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// Name of the process whose task runs now, for its logs.
pub(crate) fn current() -> Option<Arc<Process>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// One process.
pub(crate) struct Process {
    /// Its name in the trace.
    pub(crate) name: String,
    world: Arc<World>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    mode: Mode,
    /// Tasks that woke up while they were held.
    held: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Running,
    Held,
    Dead,
}

impl Process {
    /// A process without tasks.
    pub(crate) fn new(world: &Arc<World>, name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), world: Arc::clone(world), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts tasks in this process.
    pub(crate) fn spawner(self: &Arc<Self>) -> Spawner {
        let process = Arc::clone(self);
        Spawner::new(move |task| process.start(task))
    }

    /// Starts a task in this process.
    pub(crate) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        self.start(Box::pin(work));
    }

    fn start(self: &Arc<Self>, work: Task) {
        let gated = Gated { process: Arc::clone(self), work: Some(work) };
        let handle = Handle::current().spawn(gated).abort_handle();
        let mut state = self.state();
        if state.tasks.len() == state.tasks.capacity() {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(handle);
    }

    /// Stops the tasks where they are; time goes on without them.
    pub(crate) fn hold(&self) {
        let mut state = self.state();
        if state.mode == Mode::Running {
            state.mode = Mode::Held;
        }
    }

    /// Lets held tasks go on.
    pub(crate) fn resume(&self) {
        let held = {
            let mut state = self.state();
            if state.mode == Mode::Held {
                state.mode = Mode::Running;
            }
            std::mem::take(&mut state.held)
        };
        held.into_iter().for_each(Waker::wake);
    }

    /// Ends every task where it is. What the process asked of others goes on without it.
    pub(crate) fn kill(&self) {
        let tasks = {
            let mut state = self.state();
            state.mode = Mode::Dead;
            state.held.clear();
            std::mem::take(&mut state.tasks)
        };
        for task in tasks {
            task.abort();
        }
    }

    /// Whether its tasks are held.
    pub(crate) fn is_held(&self) -> bool {
        self.state().mode == Mode::Held
    }
}

/// A task that is polled only while its process runs.
struct Gated {
    process: Arc<Process>,
    work: Option<Task>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        {
            let mut state = self.process.state();
            match state.mode {
                Mode::Running => {}
                Mode::Held => {
                    state.held.push(context.waker().clone());
                    return Poll::Pending;
                }
                Mode::Dead => {
                    drop(state);
                    self.work = None;
                    return Poll::Ready(());
                }
            }
        }
        let process = Arc::clone(&self.process);
        let Some(work) = self.work.as_mut() else { return Poll::Ready(()) };
        let before = CURRENT.with(|current| current.replace(Some(Arc::clone(&process))));
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        CURRENT.with(|current| *current.borrow_mut() = before);
        polled.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of some kind");
            process.world.violate("no-panic", format!("a task of {} panicked: {text}", process.name));
            self.work = None;
            Poll::Ready(())
        })
    }
}
