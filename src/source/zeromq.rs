//! stub
use super::{Outlet, Source, SourceError};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
/// A file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}
pub(super) struct Zeromq;
impl Source for Zeromq {
    const NAME: &'static str = "zeromq";
    const ABOUT: &'static str = "a file";
    type Config = Config;
    async fn run(_: &Config, _: Outlet, _: CancellationToken) -> Result<(), SourceError> {
        Ok(())
    }
    async fn probe(_: &Config) -> Result<(), SourceError> {
        Ok(())
    }
}
pub(super) async fn follow_publisher(
    _: &super::salt_bus::Address,
    _: &Outlet,
    _: &mut super::Link,
) {
}
