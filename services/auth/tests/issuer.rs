//! Tokens against the keys of an issuer: what counts, and what attackers try.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use muster_auth::{Issuer, KeyError, KeySet, Location, MAX_TOKEN, Refused, Rules, VerifyError, verify};
use muster_domain::ids::Timestamp;
use serde_json::{Value, json};

const NOW: u64 = 1_790_000_000;
const SECRET: &[u8] = b"a secret of the agents, 32 bytes or more";

/// A key pair of an issuer.
struct Pair {
    id: &'static str,
    private: EncodingKey,
}

impl Pair {
    fn new(id: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let private = EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref());
        Self { id, private }
    }

    fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.private, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.private).unwrap()
    }
}

fn set(pairs: &[&Pair]) -> Value {
    json!({"keys": pairs.iter().map(|pair| pair.public()).collect::<Vec<_>>()})
}

fn keys(pairs: &[&Pair]) -> KeySet {
    KeySet::of_issuer(set(pairs).to_string().as_bytes()).unwrap()
}

fn rules() -> Rules {
    Rules {
        issuer: Some("https://issuer.example".to_owned()),
        audience: Some("muster".to_owned()),
        required: vec!["sub".to_owned()],
        leeway: Duration::from_secs(60),
    }
}

fn claims() -> Value {
    json!({"iss": "https://issuer.example", "aud": "muster", "sub": "ana", "iat": NOW, "exp": NOW + 300})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn now() -> Timestamp {
    Timestamp(NOW * 1_000_000)
}

#[test]
fn a_token_says_what_it_must() {
    let pair = Pair::new("1");
    let check = |claims: Value| verify(&pair.sign(&claims), &keys(&[&pair]), &rules(), now()).map(drop);
    assert_eq!(check(claims()), Ok(()));
    assert_eq!(check(with("aud", json!(["other", "muster"]))), Ok(()));
    assert_eq!(check(with("exp", json!(NOW - 59))), Ok(()), "clocks differ");
    assert_eq!(check(with("nbf", json!(NOW + 59))), Ok(()));
    for (claims, refused) in [
        (with("exp", json!(NOW - 60)), Refused::Expired),
        (with("exp", json!(0)), Refused::Expired),
        (with("exp", json!("tomorrow")), Refused::Missing("exp".to_owned())),
        (without("exp"), Refused::Missing("exp".to_owned())),
        (with("nbf", json!(NOW + 61)), Refused::NotYet),
        (with("nbf", json!("now")), Refused::NotYet),
        (with("iat", json!(NOW + 61)), Refused::NotYet),
        (with("iss", json!("https://other.example")), Refused::Issuer),
        (without("iss"), Refused::Issuer),
        (with("aud", json!("other")), Refused::Audience),
        (with("aud", json!(["other"])), Refused::Audience),
        (with("aud", json!(7)), Refused::Audience),
        (without("aud"), Refused::Audience),
        (without("sub"), Refused::Missing("sub".to_owned())),
        (with("sub", Value::Null), Refused::Missing("sub".to_owned())),
    ] {
        assert_eq!(check(claims.clone()), Err(refused), "{claims}");
    }
    // Without an audience of one's own, what is meant for somebody is not meant for this.
    let nobody = Rules { audience: None, ..rules() };
    let token = |claims: Value| verify(&pair.sign(&claims), &keys(&[&pair]), &nobody, now()).map(drop);
    assert_eq!(token(claims()), Err(Refused::Audience));
    assert_eq!(token(without("aud")), Ok(()));
}

#[test]
fn no_token_chooses_how_it_is_checked() {
    let (pair, other) = (Pair::new("1"), Pair::new("2"));
    let known = keys(&[&pair]);
    let refused = |token: &str| verify(token, &known, &rules(), now()).unwrap_err();
    let good = pair.sign(&claims());
    let (signed, _) = good.rsplit_once('.').unwrap();
    let (_, payload) = signed.split_once('.').unwrap();

    // `alg: none`, with and without a signature, in every case of its letters.
    for header in ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJOb25lIn0", "eyJhbGciOiJub25lIiwia2lkIjoiMSJ9"] {
        assert_eq!(refused(&format!("{header}.{payload}.")), Refused::Malformed);
        assert_eq!(refused(&format!("{header}.{payload}.AA")), Refused::Malformed);
    }
    // The public key as a shared secret.
    let public = pair.public().to_string();
    let header = Header { kid: Some("1".to_owned()), ..Header::new(Algorithm::HS256) };
    for secret in [public.as_bytes(), b""] {
        let confused = encode(&header, &claims(), &EncodingKey::from_secret(secret)).unwrap();
        assert_eq!(refused(&confused), Refused::Algorithm);
    }
    // A key that nobody knows, under its own name and under that of another.
    assert_eq!(refused(&other.sign(&claims())), Refused::UnknownKey);
    let forged = Pair { id: "1", private: other.private.clone() };
    assert_eq!(refused(&forged.sign(&claims())), Refused::Signature);
    // Changed content, no signature, another one's signature.
    let changed = pair.sign(&with("sub", json!("root")));
    let (_, changed) = changed.rsplit_once('.').unwrap();
    assert_eq!(refused(&format!("{signed}.{changed}")), Refused::Signature);
    assert_eq!(refused(&format!("{signed}.")), Refused::Signature);
    for bad in ["", ".", "..", "a.b.c", "a.b.c.d", signed] {
        assert_eq!(refused(bad), Refused::Malformed, "{bad:?}");
    }
    assert_eq!(refused(&format!("{}.{payload}.AA", "A".repeat(MAX_TOKEN))), Refused::TooLong);
    // A header that brings its own key is believed nothing.
    let mut header = Header { kid: Some("1".to_owned()), ..Header::new(Algorithm::ES256) };
    header.jwk = Some(serde_json::from_value(other.public()).unwrap());
    let own_key = encode(&header, &claims(), &other.private).unwrap();
    assert_eq!(refused(&own_key), Refused::Signature);
}

#[test]
fn a_shared_secret_is_one_only_where_it_was_configured_so() {
    let known = KeySet::of_secret(SECRET).unwrap();
    let sign =
        |algorithm| encode(&Header::new(algorithm), &claims(), &EncodingKey::from_secret(SECRET)).unwrap();
    assert!(verify(&sign(Algorithm::HS256), &known, &rules(), now()).is_ok());
    let pair = Pair::new("1");
    assert_eq!(verify(&pair.sign(&claims()), &known, &rules(), now()), Err(Refused::Algorithm));
    assert_eq!(KeySet::of_secret(b"secret-key").unwrap_err(), KeyError::ShortSecret);
    let published = json!({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}]}).to_string();
    assert_eq!(KeySet::of_issuer(published.as_bytes()).unwrap_err(), KeyError::NoneUsable);
}

#[test]
fn keys_that_are_not_known_do_not_spoil_the_others() {
    let pair = Pair::new("1");
    let mut mixed = set(&[&pair]);
    let mut for_secrets = Pair::new("2").public();
    for_secrets["use"] = json!("enc");
    let list = mixed["keys"].as_array_mut().unwrap();
    list.extend([json!({"kty": "quantum"}), json!(7), for_secrets]);
    let known = KeySet::of_issuer(mixed.to_string().as_bytes()).unwrap();
    assert!(verify(&pair.sign(&claims()), &known, &rules(), now()).is_ok());
    for bad in ["", "{}", "[]", "{\"keys\": 1}"] {
        assert!(matches!(KeySet::of_issuer(bad.as_bytes()), Err(KeyError::NotASet(_))), "{bad}");
    }
    let many = json!({"keys": vec![json!({}); 101]}).to_string();
    assert_eq!(KeySet::of_issuer(many.as_bytes()).unwrap_err(), KeyError::TooMany);
}

/// An issuer's server; its keys can be changed, and it counts who asks.
struct Server {
    url: String,
    keys: Arc<ArcSwap<Value>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start(keys: Value) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (keys, asked) = (Arc::new(ArcSwap::from_pointee(keys)), Arc::new(AtomicUsize::new(0)));
        let (served, counted, own) = (Arc::clone(&keys), Arc::clone(&asked), url.clone());
        let jwks = async move || {
            counted.fetch_add(1, Ordering::Relaxed);
            served.load().to_string()
        };
        let document = async move || json!({"issuer": own, "jwks_uri": format!("{own}/jwks")}).to_string();
        let router = axum::Router::new()
            .route("/jwks", axum::routing::get(jwks))
            .route("/.well-known/openid-configuration", axum::routing::get(document));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, keys, asked }
    }

    fn issuer(&self) -> Issuer {
        let rules = Rules { issuer: Some(self.url.clone()), ..rules() };
        Issuer::new(Location::Discovery(self.url.clone()), rules).unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn keys_are_discovered_kept_and_asked_for_seldom() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    let server = Server::start(set(&[&old])).await;
    let issuer = server.issuer();
    let claims = with("iss", json!(server.url));
    for _ in 0..3 {
        issuer.verify(&old.sign(&claims), now()).await.unwrap();
    }
    assert_eq!(server.asked(), 1, "keys are kept");
    // Unknown keys do not make it ask again and again.
    for _ in 0..20 {
        let refused = issuer.verify(&new.sign(&claims), now()).await.unwrap_err();
        assert!(matches!(refused, VerifyError::Refused(Refused::UnknownKey)), "{refused}");
    }
    assert_eq!(server.asked(), 1, "it asked again within seconds");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_changed_is_found() {
    let (old, new) = (Pair::new("old"), Pair::new("new"));
    // From a file: no sockets, so that the clock stands still until it is moved.
    let file = std::env::temp_dir().join(format!("muster-auth-{}.json", std::process::id()));
    std::fs::write(&file, set(&[&old]).to_string()).unwrap();
    let issuer = Issuer::new(Location::File(file.clone()), rules()).unwrap();
    issuer.verify(&old.sign(&claims()), now()).await.unwrap();
    std::fs::write(&file, set(&[&new]).to_string()).unwrap();
    tokio::time::advance(Duration::from_secs(11)).await;
    issuer.verify(&new.sign(&claims()), now()).await.unwrap();
    let refused = issuer.verify(&old.sign(&claims()), now()).await.unwrap_err();
    assert!(matches!(refused, VerifyError::Refused(Refused::UnknownKey)), "{refused}");
    // Gone for a while: what is kept counts, but not for ever.
    std::fs::remove_file(&file).unwrap();
    tokio::time::advance(Duration::from_secs(3600)).await;
    issuer.verify(&new.sign(&claims()), now()).await.unwrap();
    tokio::time::advance(Duration::from_secs(24 * 3600)).await;
    let refused = issuer.verify(&new.sign(&claims()), now()).await.unwrap_err();
    assert!(matches!(refused, VerifyError::Unavailable(_)), "{refused}");
}

#[tokio::test]
async fn who_answers_for_another_issuer_is_not_asked_for_keys() {
    let pair = Pair::new("1");
    let server = Server::start(set(&[&pair])).await;
    let other = server.url.replace("127.0.0.1", "localhost");
    let issuer = Issuer::new(Location::Discovery(other), rules()).unwrap();
    let refused = issuer.verify(&pair.sign(&claims()), now()).await.unwrap_err();
    assert!(refused.to_string().contains("another issuer"), "{refused}");
    assert_eq!(server.asked(), 0);
    for address in ["http://issuer.example", "ftp://127.0.0.1", "issuer.example", ""] {
        let location = Location::Discovery(address.to_owned());
        assert!(Issuer::new(location, rules()).is_err(), "{address:?}");
    }
    let _ = &server.keys;
}
