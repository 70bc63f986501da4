//! Routes, each with what it needs.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, on};

use super::caller::Permission;
use crate::admin::AdminState;

/// What each route needs, by path pattern and method.
pub(in crate::admin) type Table = HashMap<&'static str, Vec<(Method, Permission)>>;

/// A router under construction: a route comes with its permission, or not at all.
#[derive(Default)]
pub(in crate::admin) struct Routes {
    router: Router<AdminState>,
    table: Table,
}

impl Routes {
    pub(in crate::admin) fn get<H, T>(self, path: &'static str, needs: Permission, handler: H) -> Self
    where
        H: Handler<T, AdminState>,
        T: 'static,
    {
        self.on(Method::GET, MethodFilter::GET, path, needs, handler)
    }

    pub(in crate::admin) fn post<H, T>(self, path: &'static str, needs: Permission, handler: H) -> Self
    where
        H: Handler<T, AdminState>,
        T: 'static,
    {
        self.on(Method::POST, MethodFilter::POST, path, needs, handler)
    }

    pub(in crate::admin) fn put<H, T>(self, path: &'static str, needs: Permission, handler: H) -> Self
    where
        H: Handler<T, AdminState>,
        T: 'static,
    {
        self.on(Method::PUT, MethodFilter::PUT, path, needs, handler)
    }

    pub(in crate::admin) fn delete<H, T>(self, path: &'static str, needs: Permission, handler: H) -> Self
    where
        H: Handler<T, AdminState>,
        T: 'static,
    {
        self.on(Method::DELETE, MethodFilter::DELETE, path, needs, handler)
    }

    fn on<H, T>(
        mut self,
        method: Method,
        filter: MethodFilter,
        path: &'static str,
        needs: Permission,
        handler: H,
    ) -> Self
    where
        H: Handler<T, AdminState>,
        T: 'static,
    {
        self.table.entry(path).or_default().push((method, needs));
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    /// The router, and what each of its routes needs.
    pub(in crate::admin) fn finish(self) -> (Router<AdminState>, Arc<Table>) {
        (self.router, Arc::new(self.table))
    }
}
