//! Hostile and wrong values, and the names they are refused under.

use super::*;

fn texts(change: impl FnOnce(&mut GuestTexts)) -> Result<GuestOptions, OptionError> {
    let mut texts = GuestTexts { vmid: "101".to_owned(), ..GuestTexts::default() };
    change(&mut texts);
    texts.check()
}

#[test]
fn hostile_values_are_refused_and_the_option_is_named() {
    let long = "x".repeat(10_000);
    for bad in ["a\nb", "a,b", "a;b", "a=b", "größe", "a b", "a\0b", "$(id)", "a\u{202e}b", &long, ""] {
        let bad = || Some(bad.to_owned());
        let refused = |option: &str, result: Result<GuestOptions, OptionError>| {
            let error = result.unwrap_err();
            assert_eq!(error.option, option);
            assert!(error.to_string().len() < 500 && !error.to_string().chars().any(char::is_control), "{error}");
        };
        refused("ID", texts(|t| t.vmid = bad().unwrap()));
        refused("--name", texts(|t| t.name = bad()));
        refused("--node", texts(|t| t.node = bad()));
        refused("--storage", texts(|t| t.storage = bad()));
        refused("--template-storage", texts(|t| t.template_storage = bad()));
        refused("--bridge", texts(|t| t.bridge = bad()));
        refused("--ip", texts(|t| t.ip = bad()));
        refused("--gw", texts(|t| t.gw = bad()));
        refused("--ip6", texts(|t| t.ip6 = bad()));
        refused("--gw6", texts(|t| t.gw6 = bad()));
        refused("--dns", texts(|t| t.dns = vec![bad().unwrap()]));
        assert_eq!(server_url("--url", &bad().unwrap()).unwrap_err().option, "--url");
        assert_eq!(server_url("--url", &format!("http://{}", bad().unwrap())).unwrap_err().option, "--url");
        assert_eq!(base_domain("--base-domain", &bad().unwrap()).unwrap_err().option, "--base-domain");
        assert_eq!(endpoints("--endpoint", &[bad().unwrap()]).unwrap_err().option, "--endpoint");
        assert_eq!(routes("--route", &[bad().unwrap()]).unwrap_err().option, "--route");
    }
}

#[test]
fn addresses_that_no_host_can_have_are_refused() {
    for ip in ["0.0.0.0/0", "192.168.1.0/24", "192.168.1.255/24", "127.0.0.1/8", "224.0.0.1/4", "192.168.1.5/33", "192.168.1.5"] {
        assert_eq!(texts(|t| t.ip = Some(ip.to_owned())).unwrap_err().option, "--ip", "{ip}");
    }
    for gw in ["192.168.2.1", "192.168.1.5", "fd00::1"] {
        let result = texts(|t| (t.ip, t.gw) = (Some("192.168.1.5/24".to_owned()), Some(gw.to_owned())));
        assert_eq!(result.unwrap_err().option, "--gw", "{gw}");
    }
    assert_eq!(texts(|t| t.gw = Some("192.168.1.1".to_owned())).unwrap_err().option, "--gw");
    assert_eq!(texts(|t| t.ip6 = Some("::1/128".to_owned())).unwrap_err().option, "--ip6");
    let fixed = texts(|t| (t.ip, t.gw) = (Some("192.168.1.5/24".to_owned()), Some("192.168.1.1".to_owned()))).unwrap();
    assert_eq!(fixed.lan.gateway4, Some(Ipv4Addr::new(192, 168, 1, 1)));
}

#[test]
fn server_addresses_have_a_host_and_nothing_after_it() {
    for good in ["http://192.168.1.5:8080", "https://mesh.example.org", "http://[fd00::5]:8080", "https://mesh.example.org/"] {
        assert_eq!(server_url("--url", good).unwrap(), good.trim_end_matches('/'));
    }
    for bad in [
        "mesh.example.org",
        "ftp://x",
        "http://",
        "http://x/y",
        "http://x:0",
        "http://x:99999",
        "http://u@x",
        "http://x?y",
        "http://[::1",
        "http://[::1]x",
    ] {
        assert!(server_url("--url", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_route_is_a_network_and_not_the_internet() {
    assert!(routes("--route", &["192.168.1.0/24".to_owned(), "fd00::/64".to_owned()]).is_ok());
    let error = routes("--route", &["192.168.1.7/24".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("did you mean 192.168.1.0/24?"), "{error}");
    assert!(routes("--route", &["fd7a:115c:a1e0:b1a:0:7:192.168.1.0/120".to_owned()]).is_ok());
    assert!(routes("--route", &["fd7a:115c:a1e0:b1a::/64".to_owned()]).unwrap_err().to_string().contains("node via"));
    assert!(routes("--route", &["0.0.0.0/0".to_owned()]).unwrap_err().to_string().contains("create-exit-node"));
}

#[test]
fn a_refused_join_key_is_not_shown() {
    let error = auth_key("--auth-key-file", "tskey-secret with space").unwrap_err().to_string();
    assert!(!error.contains("tskey"));
    assert_eq!(auth_key("--auth-key-file", " tskey-1\n").unwrap().expose(), "tskey-1");
}
