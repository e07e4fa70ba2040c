// Command judge asks Tailscale's packet filter about packets. It reads one case after the other from standard input, as JSON:
//
//	{"rules": [FilterRule...], "networks": ["100.64.0.1/32"...], "shieldsUp": false, "packets": [{"out": false, "bytes": "base64"}...]}
//
// and answers each with a line of verdicts, one letter per packet: y for let in (or out), n for dropped. Packets of one case are judged in
// order, since what goes out lets answers in.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"

	"go4.org/netipx"
	"tailscale.com/net/packet"
	"tailscale.com/tailcfg"
	"tailscale.com/types/logger"
	"tailscale.com/wgengine/filter"
)

type question struct {
	Rules    []tailcfg.FilterRule
	Networks []netip.Prefix
	// ShieldsUp leaves the rules out of it: nothing comes in but answers.
	ShieldsUp bool
	Packets   []struct {
		Out   bool
		Bytes []byte
	}
}

func verdicts(asked *question) ([]byte, error) {
	matches, err := filter.MatchesFromFilterRules(asked.Rules)
	if err != nil {
		return nil, err
	}
	var networks netipx.IPSetBuilder
	for _, network := range asked.Networks {
		networks.AddPrefix(network)
	}
	local, err := networks.IPSet()
	if err != nil {
		return nil, err
	}
	judge := filter.New(matches, nil, local, local, nil, logger.Discard)
	if asked.ShieldsUp {
		judge = filter.NewShieldsUpFilter(local, local, nil, logger.Discard)
	}
	answer := make([]byte, 0, len(asked.Packets)+1)
	for _, one := range asked.Packets {
		var parsed packet.Parsed
		parsed.Decode(one.Bytes)
		var response filter.Response
		if one.Out {
			response, _ = judge.RunOut(&parsed, 0)
		} else {
			response = judge.RunIn(&parsed, 0)
		}
		letter := byte('n')
		if response == filter.Accept {
			letter = 'y'
		}
		answer = append(answer, letter)
	}
	return append(answer, '\n'), nil
}

func main() {
	for input := json.NewDecoder(os.Stdin); ; {
		var asked question
		err := input.Decode(&asked)
		if err == io.EOF {
			return
		}
		var answer []byte
		if err == nil {
			answer, err = verdicts(&asked)
		}
		if err == nil {
			_, err = os.Stdout.Write(answer)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "judge:", err)
			os.Exit(1)
		}
	}
}
