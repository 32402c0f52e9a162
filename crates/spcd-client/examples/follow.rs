//! Waits until a connection is ready, and prints what happens to it meanwhile.
//!
//! `follow URL NAME`

use spcd_client::{AnnouncedStatus, Changes, Connector, Status};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(name)) = (args.next(), args.next()) else {
        return Err("usage: follow URL NAME".into());
    };
    let mut changes = Changes::of(Connector::new(&url)?, Some(&[&name]));
    let mut ready = changes
        .begin()
        .await?
        .contains(&(name.clone(), Status::Ready));
    println!("waiting for {name}");
    while !ready {
        let change = changes.next().await?;
        match change.status {
            AnnouncedStatus::Status(status) => println!("{name}: {status}"),
            AnnouncedStatus::Deleted(_) => println!("{name}: deleted"),
        }
        ready = change.status == AnnouncedStatus::Status(Status::Ready);
    }
    println!("{name} is ready");
    Ok(())
}
