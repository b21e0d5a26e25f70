//! The image service.

use std::sync::Arc;

use beta9_image::{Step, Unused};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{BoxStream, PENDING, Server};
use crate::api;
use crate::api::image_service_server::ImageService;
use crate::service::images::{Layers, Wish};
use crate::service::lifecycle::image_error;
use crate::service::{blocking, micros};

#[tonic::async_trait]
impl ImageService for Server {
    type ImportStream = BoxStream<api::ImportResponse>;

    async fn import(
        &self,
        request: Request<api::ImportRequest>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        use api::import_response::Message;
        let (request, worker) = (request.into_inner(), Arc::clone(&self.worker));
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| Ok(api::ImportResponse { message: Some(message) });
        tokio::spawn(async move {
            let progress = sender.clone();
            // Progress is for eyes: a client that does not keep up misses some.
            let tell = move |step| drop(progress.try_send(answer(Message::Progress(step))));
            let last = tokio::select! {
                imported = worker.import(request, tell) => match imported {
                    Ok(image) => answer(Message::Image((&image).into())),
                    Err(error) => Err(error.into()),
                },
                // The process that reads ends with the client that wanted it.
                () = sender.closed() => return,
            };
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn prune_images(
        &self,
        request: Request<api::PruneImagesRequest>,
    ) -> Result<Response<api::PruneImagesResponse>, Status> {
        let unused = if request.into_inner().all { Unused::All } else { Unused::Dangling };
        let pruned = self.worker.prune_images(unused).await?;
        let images = pruned.images.iter().map(ToString::to_string).collect();
        Ok(Response::new(api::PruneImagesResponse { images, freed_bytes: pruned.bytes }))
    }

    async fn list_images(
        &self,
        _: Request<api::ListImagesRequest>,
    ) -> Result<Response<api::ListImagesResponse>, Status> {
        let store = Arc::clone(&self.worker.store);
        let images = blocking(move || store.list()).await?.map_err(image_error)?;
        Ok(Response::new(api::ListImagesResponse { images: images.iter().map(api::Image::from).collect() }))
    }

    type PullStream = BoxStream<api::PullResponse>;

    async fn pull(&self, request: Request<api::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        use api::pull_response::Message;
        let wish = Wish::of_pull(request.into_inner())?;
        let worker = Arc::clone(&self.worker);
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| api::PullResponse { message: Some(message) };
        tokio::spawn(async move {
            let (watch, layers) = Layers::new();
            let work = worker.fulfil(wish, watch);
            let done = layers.during(work, &sender, |progress| answer(Message::Progress(progress))).await;
            if let Some(done) = done {
                let last = done.map(|image| answer(Message::Image((&image).into()))).map_err(Status::from);
                let _ = sender.send(last).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type PushStream = BoxStream<api::PushResponse>;

    async fn push(&self, request: Request<api::PushRequest>) -> Result<Response<Self::PushStream>, Status> {
        use api::push_response::Message;
        let (request, worker) = (request.into_inner(), Arc::clone(&self.worker));
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| api::PushResponse { message: Some(message) };
        tokio::spawn(async move {
            let (watch, layers) = Layers::new();
            let work = worker.push(request, watch);
            let done = layers.during(work, &sender, |progress| answer(Message::Progress(progress))).await;
            if let Some(done) = done {
                let last = done.map(|image| answer(Message::Image(image))).map_err(Status::from);
                let _ = sender.send(last).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn check_login(
        &self,
        request: Request<api::CheckLoginRequest>,
    ) -> Result<Response<api::CheckLoginResponse>, Status> {
        self.worker.check_login(request.into_inner()).await?;
        Ok(Response::new(api::CheckLoginResponse {}))
    }

    async fn inspect_image(
        &self,
        request: Request<api::InspectImageRequest>,
    ) -> Result<Response<api::InspectImageResponse>, Status> {
        Ok(Response::new(self.worker.inspect_image(&request.into_inner().image).await?))
    }

    async fn remove_image(
        &self,
        request: Request<api::RemoveImageRequest>,
    ) -> Result<Response<api::RemoveImageResponse>, Status> {
        let api::RemoveImageRequest { image, force } = request.into_inner();
        let removed = self.worker.remove_image(&image, force).await?;
        Ok(Response::new(api::RemoveImageResponse {
            removed_references: removed.references.iter().map(ToString::to_string).collect(),
            removed_digest: removed.content.map_or_else(String::new, |digest| digest.to_string()),
            freed_bytes: removed.freed,
        }))
    }

    type ExportImageStream = BoxStream<api::ExportImageResponse>;

    async fn export_image(
        &self,
        request: Request<api::ExportImageRequest>,
    ) -> Result<Response<Self::ExportImageStream>, Status> {
        use api::export_image_response::Message;
        let (request, worker) = (request.into_inner(), Arc::clone(&self.worker));
        let (sender, receiver) = mpsc::channel(PENDING);
        let answer = |message| Ok(api::ExportImageResponse { message: Some(message) });
        tokio::spawn(async move {
            let progress = sender.clone();
            let report = move |step: Step, done_bytes, total: Option<u64>| {
                let (step, total_bytes) = (step.as_str().to_owned(), total.unwrap_or(0));
                let message = api::ImportProgress { step, done_bytes, total_bytes };
                // Progress is for eyes: a client that does not keep up misses some.
                let _ = progress.try_send(answer(Message::Progress(message)));
            };
            let last = match worker.export_image(request, report).await {
                Ok(path) => answer(Message::Path(path)),
                Err(error) => Err(error.into()),
            };
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl From<&beta9_image::Image> for api::Image {
    fn from(image: &beta9_image::Image) -> Self {
        Self {
            reference: image.reference.to_string(),
            digest: image.digest.to_string(),
            size_bytes: image.size,
            imported_us: micros(image.imported),
            layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        }
    }
}
