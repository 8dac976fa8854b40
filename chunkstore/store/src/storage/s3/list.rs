//! Listing: a page tells at most a thousand names, so large folders are listed by their
//! directories at once.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};

use super::client::Client;
use super::retry::Failure;
use crate::error::ErrorKind;
use crate::key::{Folder, ObjectKey};

/// Directories listed at once.
const AT_ONCE: usize = 16;
/// Pages of one directory: a hundred million names.
const PAGES_MAX: usize = 100_000;

/// An object's full name and its size.
pub(super) type Named = (String, u64);

impl Client {
    /// The objects of a folder with their sizes, in no order, some perhaps twice. Foreign names are
    /// left out.
    pub(super) async fn list(
        self: Arc<Self>,
        folder: Folder,
    ) -> std::result::Result<Vec<(ObjectKey, u64)>, Failure> {
        let dirs = folder.directories();
        let base = self.path("").to_string();
        let key_of = |full: &str| {
            let name = full.strip_prefix(&base)?.trim_start_matches('/');
            let key = ObjectKey::from_name(folder, name.rsplit('/').next()?)?;
            (key.path() == name).then_some(key)
        };
        let keys = |names: Vec<Named>| {
            names.iter().filter_map(|(n, size)| Some((key_of(n)?, *size))).collect::<Vec<_>>()
        };
        let top = dirs.first().and_then(|d| d.split('/').next()).unwrap_or_default();
        // One request is enough for a small folder, however many directories it has.
        let (first, more) = self.page(top, None).await?;
        let Some(token) = more else { return Ok(keys(first)) };
        if let [only] = dirs.as_slice() {
            let mut found = first;
            found.extend(self.pages(only, Some(token)).await?);
            return Ok(keys(found));
        }
        let parts = stream::iter(dirs).map(|dir| {
            let client = self.clone();
            async move { client.pages(&dir, None).await }
        });
        let found: Vec<Vec<Named>> = parts.buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flat_map(keys).collect())
    }

    /// All names below `dir`, from the page that `token` stands for.
    async fn pages(
        &self,
        dir: &str,
        mut token: Option<String>,
    ) -> std::result::Result<Vec<Named>, Failure> {
        let mut found = Vec::new();
        for _ in 0..PAGES_MAX {
            let (names, next) = self.page(dir, token.clone()).await?;
            found.extend(names);
            match next {
                None => return Ok(found),
                next if next == token => break,
                next => token = next,
            }
        }
        Err(Failure::lasting(ErrorKind::Io, format!("the listing of {dir} does not end")))
    }

    /// One page: names, and the token of the next.
    pub(super) async fn page(
        &self,
        dir: &str,
        token: Option<String>,
    ) -> std::result::Result<(Vec<Named>, Option<String>), Failure> {
        let (prefix, token) = (&format!("{}/", self.path(dir)), &token);
        self.tries(0, |_| async move {
            let page_token = token.clone();
            let options = PaginatedListOptions { page_token, ..Default::default() };
            let page = self.store.list_paginated(Some(prefix), options).await?;
            let PaginatedListResult { result, page_token } = page;
            let names = result.objects.into_iter().map(|o| (o.location.into(), o.size));
            Ok((names.collect(), page_token))
        })
        .await
    }
}
