//! stub
use super::{Outlet, Source, SourceError};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
/// A file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {}
pub(super) struct Replay;
impl Source for Replay {
    const NAME: &'static str = "replay";
    const ABOUT: &'static str = "a file";
    type Config = Config;
    async fn run(_: &Config, _: Outlet, _: CancellationToken) -> Result<(), SourceError> {
        Ok(())
    }
    async fn probe(_: &Config) -> Result<(), SourceError> {
        Ok(())
    }
}
