//! Counts and times requests, by listener, method, route template and outcome.
//!
//! Remembers the series of served requests; looks up those of failures each time.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Method, StatusCode};

use crate::metrics::{Counter, Counters, Histogram, Labels, Registry, Seconds, Timings, counter, timing};

/// Methods that have their own series; the last stands for all others.
const METHODS: [&str; 4] = ["GET", "POST", "DELETE", "other"];

/// The requests of all listeners of one daemon.
#[derive(Clone, Debug, Default)]
pub struct RequestMeters {
    requests: Counters,
    durations: Timings,
}

impl RequestMeters {
    /// Meters that `registry` shows.
    pub fn register(registry: &mut Registry) -> Self {
        let meters = Self::default();
        registry.register("dqkd_http_requests", "Requests by their outcome", meters.requests.clone());
        registry.register(
            "dqkd_http_request_duration_seconds",
            "From the request's head to the answer's head",
            meters.durations.clone(),
        );
        meters
    }

    /// The meter of one listener.
    pub(super) fn of(&self, listener: &'static str) -> ListenerMeter {
        ListenerMeter { listener, meters: self.clone(), routes: Arc::default() }
    }
}

/// Most route templates of one listener.
const ROUTES_MAX: usize = 8;

/// The requests of one listener.
#[derive(Clone, Debug)]
pub(super) struct ListenerMeter {
    listener: &'static str,
    meters: RequestMeters,
    routes: Arc<[OnceLock<Route>; ROUTES_MAX]>,
}

#[derive(Debug)]
struct Route {
    template: &'static str,
    methods: [OnceLock<Handles>; METHODS.len()],
}

#[derive(Debug)]
struct Handles {
    /// The first successful status, usually the only one.
    served: (StatusCode, Counter),
    duration: Histogram<Seconds>,
}

impl ListenerMeter {
    /// Notes a request: its `status`, or `None` if its client disconnected before the answer.
    pub(super) fn note(
        &self,
        method: &Method,
        template: &'static str,
        status: Option<StatusCode>,
        code: Option<&'static str>,
        duration: Duration,
    ) {
        let place = place_of(method);
        let handles = self.handles(template, place, status);
        match (&handles, status, code) {
            (Some(handles), Some(status), None) if handles.served.0 == status => {
                handles.served.1.inc();
            }
            _ => {
                self.requests(template, place, status, code).inc();
            }
        }
        match handles {
            Some(handles) => handles.duration.observe(duration),
            None => self.duration(template, place).observe(duration),
        }
    }

    fn handles(&self, template: &'static str, place: usize, status: Option<StatusCode>) -> Option<&Handles> {
        // A template is one static string, so comparing the pointers is usually enough.
        let of_template = |slot: &'_ &OnceLock<Route>| {
            let route = slot.get_or_init(|| Route { template, methods: Default::default() });
            std::ptr::eq(route.template, template) || route.template == template
        };
        let methods = &self.routes.iter().find(of_template)?.get()?.methods;
        let slot = methods.get(place)?;
        if let Some(handles) = slot.get() {
            return Some(handles);
        }
        let served = status.filter(StatusCode::is_success)?;
        let counter = self.requests(template, place, status, None);
        let duration = self.duration(template, place);
        Some(slot.get_or_init(|| Handles { served: (served, counter), duration }))
    }

    fn requests(
        &self,
        template: &'static str,
        place: usize,
        status: Option<StatusCode>,
        code: Option<&'static str>,
    ) -> Counter {
        let status = status.map_or_else(|| "none".to_owned(), |status| status.as_u16().to_string());
        let labels = self.labels(template, place).and("status", status).and("code", code.unwrap_or("ok"));
        counter(&self.meters.requests, labels)
    }

    fn duration(&self, template: &'static str, place: usize) -> Histogram<Seconds> {
        timing(&self.meters.durations, self.labels(template, place))
    }

    fn labels(&self, template: &'static str, place: usize) -> Labels {
        let method = METHODS.get(place).copied().unwrap_or("other");
        Labels::new([("listener", self.listener), ("method", method), ("route", template)])
    }
}

fn place_of(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{encode, registry};

    const ROUTE: &str = "/x/{id}";

    fn line(listener: &str, method: &str, status: &str, code: &str, count: u32) -> String {
        format!(
            "dqkd_http_requests_total{{listener=\"{listener}\",method=\"{method}\",route=\"/x/{{id}}\",\
             status=\"{status}\",code=\"{code}\"}} {count}\n"
        )
    }

    #[test]
    fn requests_are_told_apart_by_method_status_and_code_and_all_have_a_duration() {
        let mut registry = registry();
        let meters = RequestMeters::register(&mut registry);
        let meter = meters.of("sae");
        let note = |method: Method, status: Option<u16>, code| {
            let status = status.map(|status| StatusCode::from_u16(status).unwrap());
            meter.note(&method, ROUTE, status, code, Duration::from_millis(3));
        };
        note(Method::POST, Some(503), Some("overloaded"));
        for _ in 0..2 {
            note(Method::POST, Some(200), None);
        }
        note(Method::POST, Some(204), None);
        note(Method::POST, None, Some("client_gone"));
        note(Method::from_bytes(b"BREW").unwrap(), Some(405), Some("method_not_allowed"));
        let text = encode(&registry).unwrap();
        for expected in [
            line("sae", "POST", "200", "ok", 2),
            line("sae", "POST", "204", "ok", 1),
            line("sae", "POST", "503", "overloaded", 1),
            line("sae", "POST", "none", "client_gone", 1),
            line("sae", "other", "405", "method_not_allowed", 1),
        ] {
            assert!(text.contains(&expected), "{expected}in {text}");
        }
        let durations = "dqkd_http_request_duration_seconds_count";
        assert!(
            text.contains(&format!(
                "{durations}{{listener=\"sae\",method=\"POST\",route=\"/x/{{id}}\"}} 5\n"
            ))
        );
    }

    #[test]
    fn more_templates_than_slots_are_counted_all_the_same() {
        let templates = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9"];
        assert!(templates.len() > ROUTES_MAX);
        let mut registry = registry();
        let meter = RequestMeters::register(&mut registry).of("admin");
        for _ in 0..3 {
            for template in templates {
                meter.note(&Method::GET, template, Some(StatusCode::OK), None, Duration::ZERO);
            }
        }
        let text = encode(&registry).unwrap();
        for template in templates {
            let line = format!("route=\"{template}\",status=\"200\",code=\"ok\"}} 3\n");
            assert!(text.contains(&line), "{template}: {text}");
        }
    }
}
