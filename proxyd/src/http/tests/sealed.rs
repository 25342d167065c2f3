//! Requests whose way goes over TLS, on one side or the other.

use super::*;
use crate::leg::tests::narrow_pair;

/// Longer than what the kernel takes at once, and the end of it is a record that is.
fn long() -> String {
    "x".repeat(60_000)
}

async fn hears(leg: &mut Leg, text: &str) {
    let mut heard = vec![0; text.len()];
    let read = timeout(LIMIT, leg.read_exact(&mut heard)).await;
    assert!(matches!(read, Ok(Ok(_))), "{read:?}");
    assert_eq!(String::from_utf8(heard).unwrap(), text);
}

/// A client that comes over TLS.
async fn from_another_host(scene: &mut Scene) -> (Leg, Ends) {
    let (ends, reached) = scene.reach().await;
    let (client, from_client) = narrow_pair().await;
    let sides = Sides::from((from_client, reached.upstream));
    let talk = converse(scene.context.clone(), reached.active, sides);
    scene.tasks.spawn(talk);
    (client, ends)
}

/// An answer that is passed on before all of it is with the kernel.
fn answer() -> String {
    let body = "x".repeat(14_000);
    format!("HTTP/1.1 200 OK\r\nContent-Length: 14000\r\n\r\n{body}")
}

#[tokio::test]
async fn the_end_of_a_request_reaches_an_application_that_is_slow_to_read() {
    let mut scene = Scene::set(|_| {}).await;
    let (mut all, reached) = scene.reach().await;
    let (upstream, mut app) = narrow_pair().await;
    let sides = Sides::from((reached.client, upstream));
    let talk = converse(scene.context.clone(), reached.active, sides);
    scene.tasks.spawn(talk);
    let body = long();
    let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    let ask = [head, body].concat();
    say(&mut all.client, &ask).await;
    hears(&mut app, &ask).await;
    app.write_all(OK.as_bytes()).await.unwrap();
    hear(&mut all.client, OK).await;
}

/// More of the answer may come much later.
#[tokio::test]
async fn a_part_of_an_answer_reaches_a_client_that_is_slow_to_read() {
    let mut scene = Scene::set(|_| {}).await;
    let (mut client, mut all) = from_another_host(&mut scene).await;
    client.write_all(GET.as_bytes()).await.unwrap();
    hear(&mut all.app, GET).await;
    let part = long();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 60001\r\n\r\n";
    let part = [head, &part].concat();
    say(&mut all.app, &part).await;
    hears(&mut client, &part).await;
    say(&mut all.app, "!").await;
    hears(&mut client, "!").await;
}

/// The gate is parked meanwhile, so the connection is over with this answer.
#[tokio::test]
async fn who_has_finished_gets_all_of_its_last_answer() {
    let mut scene = Scene::set(|_| {}).await;
    let (mut client, mut all) = from_another_host(&mut scene).await;
    client.write_all(GET.as_bytes()).await.unwrap();
    client.finish_sending();
    hear(&mut all.app, GET).await;
    ends(&mut all.app).await;
    scene.prepare();
    let answer = answer();
    say(&mut all.app, &answer).await;
    all.is(Stage::Resting).await;
    hears(&mut client, &answer).await;
    let end = timeout(LIMIT, client.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0)), "{end:?}");
}

/// The next question was asked at once, and waits at the gate; its answer may come much later.
#[tokio::test]
async fn an_answer_reaches_its_client_while_the_next_question_waits() {
    let mut scene = Scene::set(|_| {}).await;
    let (mut client, mut all) = from_another_host(&mut scene).await;
    let two = [GET, GET].concat();
    client.write_all(two.as_bytes()).await.unwrap();
    hear(&mut all.app, GET).await;
    scene.prepare();
    let answer = answer();
    say(&mut all.app, &answer).await;
    all.is(Stage::Parked).await;
    hears(&mut client, &answer).await;
    scene.commit();
    let mut app = scene.arrives().await;
    hear(&mut app, GET).await;
    say(&mut app, OK).await;
    hears(&mut client, OK).await;
}
