//! Work that one task does and many callers wait for. It continues if a caller disconnects.

use std::future::Future;

use tokio::sync::watch;

/// A task's result, shared by everybody who waits for it.
pub(super) struct Flight<T>(watch::Receiver<Option<T>>);

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Starts `work` in its own task.
    pub(super) fn start(work: impl Future<Output = T> + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(async move {
            let result = work.await;
            sender.send_replace(Some(result));
        });
        Self(receiver)
    }

    /// The result, when it is there; `None` when the task ended without one (it panicked, or the runtime
    /// stops).
    pub(super) async fn wait(mut self) -> Option<T> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|result| result.clone())
    }

    /// The result if it is there already.
    pub(super) fn landed(&self) -> Option<T> {
        self.0.borrow().clone()
    }

    /// Whether the task is over, with or without a result.
    pub(super) fn is_over(&self) -> bool {
        self.0.borrow().is_some() || self.0.has_changed().is_err()
    }
}
