//! Several agents with one instance_uid, and agents that ask for one.

use muster_proto::bus::{
    ContestResolved, ContestVerdict, EndReason, GatewayReply, GatewayRequest, ProbeResult, ProbeSession,
    SessionRef, gateway_reply, gateway_request,
};
use muster_proto::opamp::{AgentToServer, ServerErrorResponseType, ServerToAgent, ServerToAgentFlags};
use muster_testkit::messages::{first_report, full_state, heartbeat};

use super::*;

const ONE: Uuid = Uuid::from_u128(AGENT);
const OTHER: Uuid = Uuid::from_u128(8);
const NEW: Uuid = Uuid::from_u128(9);

impl Gateway {
    /// Asks, as control does, whether the agent of a session is there.
    async fn probe(&self, uid: Uuid, session: &Bytes) -> ProbeResult {
        let session =
            SessionRef { instance_uid: uid.as_bytes().to_vec().into(), session_id: session.clone() };
        let request = GatewayRequest {
            cell: "here".to_owned(),
            tenant: "default".to_owned(),
            traceparent: String::new(),
            request: Some(gateway_request::Request::Probe(ProbeSession { session: Some(session) })),
        };
        let subject = Subject::Gateway(cell(), "g1".parse().unwrap());
        let reply = self.bus.request(&subject, request.encode_to_vec().into(), Duration::from_millis(3500));
        let result = match GatewayReply::decode(reply.await.unwrap()).unwrap().reply.unwrap() {
            gateway_reply::Reply::Probe(result) => Ok(result),
            gateway_reply::Reply::Error(error) => Err(error),
        };
        ProbeResult::try_from(result.unwrap()).unwrap()
    }

    /// Waits until the last word about an agent is that its session has ended.
    async fn ended(&self, uid: Uuid) -> EndReason {
        eventually(SOON, async || {
            let last = self.published(uid).await.pop().ok_or("nothing was published")?;
            last.ended.map(|ended| ended.reason()).ok_or_else(|| "it has not ended".to_owned())
        })
        .await
    }

    /// The next claim that is contested.
    async fn contest(&mut self) -> Contest {
        tokio::time::timeout(SOON, self.contests.recv()).await.unwrap().unwrap()
    }

    fn later(&self, by: Duration) {
        self.time.fetch_add(u64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

fn duplicate() -> control_reply::Reply {
    control_reply::Reply::Contest(ContestResolved {
        verdict: ContestVerdict::HolderAlive.into(),
        new_instance_uid: NEW.as_bytes().to_vec().into(),
    })
}

fn takeover() -> control_reply::Reply {
    let verdict = ContestVerdict::Takeover.into();
    control_reply::Reply::Contest(ContestResolved { verdict, ..ContestResolved::default() })
}

fn requesting(message: AgentToServer) -> AgentToServer {
    AgentToServer { flags: 1, ..message }
}

/// The uid that an answer gives the agent.
fn given(answer: &ServerToAgent) -> Option<Uuid> {
    let identification = answer.agent_identification.as_ref()?;
    Some(Uuid::from_slice(&identification.new_instance_uid).unwrap())
}

#[tokio::test]
async fn a_lone_agent_is_probed_by_a_ping() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    let reads = async {
        let unexpected = agent.next_within(SOON).await;
        panic!("a ping is no message, this is one: {unexpected:?}");
    };
    tokio::select! {
        result = gateway.probe(ONE, &session) => assert_eq!(result, ProbeResult::Alive),
        () = reads => {}
    }
    assert_eq!(
        gateway.probe(ONE, &Bytes::from_static(&[7; 16])).await,
        ProbeResult::Absent,
        "another session"
    );
    // Nobody reads from the connection any more. It is ended with its session.
    assert_eq!(gateway.probe(ONE, &session).await, ProbeResult::Silent);
    assert_eq!(agent.recv_close().await, 1008);
    assert_eq!(gateway.ended(ONE).await, EndReason::Silent);
    gateway.stop().await;
}

#[tokio::test]
async fn one_of_several_agents_is_probed_by_a_question_of_its_own() {
    let gateway = Gateway::start().await;
    let (mut agents, session) = gateway.connect().await;
    agents.exchange(&first_report(OTHER, &[])).await;
    let asked = async |agents: &mut RawAgent| {
        let question = agents.recv().await;
        assert_eq!(question.instance_uid, ONE.as_bytes());
        assert_eq!(question.flags, ServerToAgentFlags::ReportFullState as u64);
    };
    let answers = async {
        asked(&mut agents).await;
        agents.exchange(&full_state(ONE, 1, &[])).await;
    };
    let (result, ()) = tokio::join!(gateway.probe(ONE, &session), answers);
    assert_eq!(result, ProbeResult::Alive);
    // The connection answers pings, and the other agent speaks: that says nothing about this one.
    let others_answer = async {
        asked(&mut agents).await;
        agents.exchange(&heartbeat(OTHER, 1)).await;
        agents.next_within(Duration::from_secs(3)).await;
    };
    let (result, ()) = tokio::join!(gateway.probe(ONE, &session), others_answer);
    assert_eq!(result, ProbeResult::Silent);
    assert_eq!(gateway.ended(ONE).await, EndReason::Silent);
    let answer = agents.exchange(&heartbeat(OTHER, 2)).await;
    assert_eq!((answer.error_response, answer.flags), (None, 0), "the other agent goes on");
    gateway.stop().await;
}

#[tokio::test]
async fn an_agent_that_leaves_while_it_is_probed_is_gone() {
    let gateway = Gateway::start().await;
    let (mut agent, session) = gateway.connect().await;
    let leaves = async {
        // The ping is answered, and then the connection closed.
        agent.next_within(Duration::from_millis(200)).await;
        agent.close(1000).await;
    };
    let (result, _) = tokio::join!(gateway.probe(ONE, &session), leaves);
    assert_eq!(result, ProbeResult::Absent);
    gateway.stop().await;
}

#[tokio::test]
async fn a_contest_over_one_agent_of_a_connection_holds_up_none_of_the_others() {
    let mut gateway = Gateway::start().await;
    let (_holder, _) = gateway.connect().await;
    let before = gateway.published(ONE).await;
    let mut newcomer = RawAgent::connect(&gateway.url).await;
    newcomer.send(&first_report(ONE, &[("team", "red")])).await;
    newcomer.send(&full_state(ONE, 1, &[("team", "red")])).await;
    let contest = gateway.contest().await;
    assert_eq!(contest.question.instance_uid.as_ref(), ONE.as_bytes());
    assert_eq!(contest.question.holder_session_id, before[0].session_id);
    for sequence in 0..10 {
        let answer = newcomer.exchange(&full_state(OTHER, sequence, &[])).await;
        assert_eq!((answer.instance_uid.as_slice(), given(&answer)), (OTHER.as_bytes().as_slice(), None));
    }
    contest.answer(duplicate()).await;
    for flags in [ServerToAgentFlags::ReportFullState as u64, 0] {
        let answer = newcomer.recv().await;
        assert_eq!((given(&answer), answer.flags), (Some(NEW), flags));
    }
    assert_eq!(gateway.published(ONE).await, before, "nothing of the newcomer is published under the uid");
    let answer = newcomer.exchange(&full_state(NEW, 2, &[])).await;
    // Nothing is known of the new uid, and its numbers do not begin anew: full state is asked for.
    assert_eq!((answer.flags, given(&answer)), (ServerToAgentFlags::ReportFullState as u64, None));
    assert_eq!(gateway.published(NEW).await.len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_control_that_cannot_tell_makes_the_newcomer_come_again() {
    let mut gateway = Gateway::start().await;
    let (_holder, _) = gateway.connect().await;
    let mut newcomer = RawAgent::connect(&gateway.url).await;
    newcomer.send(&first_report(ONE, &[])).await;
    for _ in 0..2 {
        gateway.contest().await.answer(control_reply::Reply::Error("no".to_owned())).await;
    }
    let error = newcomer.recv().await.error_response.unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::Unavailable);
    assert!(error.details.is_some(), "retry_info: {error:?}");
    // It comes again, and the other one is dead by now.
    newcomer.send(&first_report(ONE, &[])).await;
    gateway.contest().await.answer(takeover()).await;
    assert_eq!(newcomer.recv().await.error_response, None);
    gateway.stop().await;
}

#[tokio::test]
async fn what_a_connection_claims_after_its_end_is_given_back() {
    let mut gateway = Gateway::start().await;
    let (holder, _) = gateway.connect().await;
    let mut newcomer = RawAgent::connect(&gateway.url).await;
    newcomer.send(&first_report(ONE, &[])).await;
    let contest = gateway.contest().await;
    newcomer.close(1000).await;
    drop(holder);
    contest.answer(takeover()).await;
    // The next one meets nobody, in the end.
    eventually(SOON, async || {
        let mut agent = RawAgent::connect(&gateway.url).await;
        agent.send(&first_report(ONE, &[])).await;
        tokio::select! {
            answer = agent.recv() => answer.error_response.map_or(Ok(()), |error| Err(error.error_message)),
            contest = gateway.contests.recv() => {
                contest.unwrap().answer(control_reply::Reply::Error("not yet".to_owned())).await;
                Err("contested".to_owned())
            }
        }
    })
    .await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_uid_that_an_agent_asks_for_is_published_under_first() {
    let gateway = Gateway::start().await;
    let mut agent = RawAgent::connect(&gateway.url).await;
    let answer = agent.exchange(&requesting(first_report(ONE, &[]))).await;
    let new = given(&answer).unwrap();
    assert_eq!((answer.instance_uid.as_slice(), answer.flags), (ONE.as_bytes().as_slice(), 0));
    assert_eq!((gateway.published(ONE).await.len(), gateway.published(new).await.len()), (0, 1));
    // One that does not take it is refused in the end, whatever it asks for.
    for sequence in 1..3 {
        gateway.later(Duration::from_secs(30));
        let answer = agent.exchange(&heartbeat(ONE, sequence)).await;
        assert_eq!(given(&answer), Some(new));
    }
    gateway.later(Duration::from_secs(30));
    let answer = agent.exchange(&requesting(full_state(ONE, 3, &[]))).await;
    let error = answer.error_response.unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
    // On its next connection it is still the same agent, and after enough of them it is refused at once.
    for _ in 0..9 {
        agent.close(1000).await;
        agent = RawAgent::connect(&gateway.url).await;
        let answer = agent.exchange(&requesting(first_report(ONE, &[]))).await;
        assert_eq!(given(&answer), Some(new), "{answer:?}");
    }
    agent.close(1000).await;
    eventually(SOON, async || {
        let mut agent = RawAgent::connect(&gateway.url).await;
        let answer = agent.exchange(&requesting(first_report(ONE, &[]))).await;
        answer.error_response.map(drop).ok_or_else(|| "it is given a uid".to_owned())
    })
    .await;
    gateway.stop().await;
}
