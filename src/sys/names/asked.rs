//! Questions that others are being asked about: one that comes again meanwhile waits for the same reply.
//!
//! That spares the servers, and ends a circle: a forwarder on this machine that we ask, and that asks us (a dnsmasq that reads
//! `/etc/resolv.conf`), gets no further question for its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::names::with_id;

/// A question under the number 0, and whether it came by TCP.
type Key = (Vec<u8>, bool);
/// Nothing, then the reply under the number 0, if there is one.
type Reply = Option<Option<Arc<[u8]>>>;

/// Questions under way.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<HashMap<Key, watch::Receiver<Reply>>>);

/// Takes a question off the list when its asking ends, however it does.
struct Entry<'a>(&'a Asked, Key);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.list().remove(&self.1);
    }
}

impl Asked {
    fn list(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Reply>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, unless the same question is under way: then its reply is this one's.
    pub(super) async fn once(&self, question: &[u8], by_tcp: bool, ask: impl Future<Output = Option<Vec<u8>>>) -> Option<Vec<u8>> {
        let key = (with_id(question, 0), by_tcp);
        let (tell, hear) = watch::channel(None);
        let under_way = {
            let mut list = self.list();
            match list.get(&key) {
                Some(receiver) => Some(receiver.clone()),
                None => {
                    list.insert(key.clone(), hear);
                    None
                }
            }
        };
        let number = question.first_chunk::<2>().copied().map_or(0, u16::from_be_bytes);
        if let Some(mut receiver) = under_way {
            // An asking that was given up has no reply.
            let reply = receiver.wait_for(Option::is_some).await.ok()?.clone();
            return reply.flatten().map(|reply| with_id(&reply, number));
        }
        let _entry = Entry(self, key);
        let reply = ask.await;
        let _ = tell.send(Some(reply.as_ref().map(|reply| with_id(reply, 0).into())));
        reply
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_same_question_is_asked_once_and_each_gets_its_own_number() {
        let (asked, times) = (Asked::default(), AtomicUsize::new(0));
        let (answer, answered) = oneshot::channel::<()>();
        let first = asked.once(&[0, 1, b'q'], false, async {
            times.fetch_add(1, Ordering::Relaxed);
            answered.await.ok()?;
            Some(vec![0, 1, b'r'])
        });
        let again = |id, kind| asked.once(if kind { &[0, 2, b'q'] } else { &[0, 3, b'x'] }, false, async move { Some(vec![0, id, b'o']) });
        let rest = async {
            assert_eq!(again(3, false).await, Some(vec![0, 3, b'o']), "another question does not wait");
            let second = again(2, true);
            answer.send(()).unwrap();
            second.await
        };
        let (first, second) = tokio::join!(first, rest);
        assert_eq!((first, second), (Some(vec![0, 1, b'r']), Some(vec![0, 2, b'r'])));
        assert_eq!(times.load(Ordering::Relaxed), 1);
        assert!(asked.list().is_empty());
        assert_eq!(again(2, true).await, Some(vec![0, 2, b'o']), "later it is asked anew");
    }

    #[tokio::test]
    async fn who_waits_for_an_asking_that_is_given_up_has_no_reply() {
        let asked = Arc::new(Asked::default());
        let first = tokio::spawn({
            let asked = asked.clone();
            async move { asked.once(&[0, 1], false, std::future::pending()).await }
        });
        while asked.list().is_empty() {
            tokio::task::yield_now().await;
        }
        let second = asked.once(&[0, 2], false, async { Some(vec![0, 2]) });
        let give_up = async { first.abort() };
        assert_eq!(tokio::join!(second, give_up).0, None);
        assert!(asked.list().is_empty());
    }
}
