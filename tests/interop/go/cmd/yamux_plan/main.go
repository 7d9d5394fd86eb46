// hashicorp/yamux over one TCP connection, following a plan that rust/yamux/examples/plan_peer.rs follows at the other end.
//
// Each line of the plan is a stream: who opens it (`ours` or `theirs`), how many bytes are sent before the half-close, how many
// milliseconds nothing is read, and how many milliseconds to wait before writing. When all streams are over, a JSON line a
// stream says what happened.
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"ech-workers.example/interop/deployed"
)

type plan struct {
	opener  string
	bytes   int64
	stopped time.Duration
	delay   time.Duration
}

func main() {
	log.SetFlags(log.Lmicroseconds)
	client := flag.Bool("client", false, "be the session's client")
	window := flag.Uint("window", 4<<20, "receive window")
	closeTimeout := flag.Duration("close-timeout", 30*time.Second, "StreamCloseTimeout")
	file := flag.String("plan", "", "file with the plan")
	flag.Parse()

	ours, theirs, err := read(*file)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	deployed.Report("listening", map[string]any{"address": listener.Addr().String()})
	connection, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	config := deployed.YamuxConfig()
	config.MaxStreamWindowSize = uint32(*window)
	config.KeepAliveInterval = 100 * time.Millisecond
	config.StreamCloseTimeout = *closeTimeout
	start := yamux.Server
	if *client {
		start = yamux.Client
	}
	session, err := start(connection, config)
	if err != nil {
		log.Fatal(err)
	}

	var streams sync.WaitGroup
	streams.Add(len(ours) + len(theirs))
	go open(session, ours, &streams)
	go accept(session, theirs, &streams)
	streams.Wait()
	if _, err := session.Ping(); err != nil {
		log.Fatalf("the session did not survive: %v", err)
	}
	if left := session.NumStreams(); left > 0 {
		// The last FIN or RST may not have been read.
		time.Sleep(200 * time.Millisecond)
	}
	deployed.Report("session", map[string]any{"streams": session.NumStreams()})
	_ = session.Close()
}

func read(file string) (ours, theirs []plan, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(text)) {
		var p plan
		var stopped, delay int64
		if _, err := fmt.Sscan(line, &p.opener, &p.bytes, &stopped, &delay); err != nil {
			return nil, nil, fmt.Errorf("%q: %w", line, err)
		}
		p.stopped = time.Duration(stopped) * time.Millisecond
		p.delay = time.Duration(delay) * time.Millisecond
		if p.opener == "ours" {
			ours = append(ours, p)
		} else {
			theirs = append(theirs, p)
		}
	}
	return ours, theirs, nil
}

// open opens in order, so that the other end knows which stream is which by its id.
func open(session *yamux.Session, plans []plan, streams *sync.WaitGroup) {
	for _, p := range plans {
		stream, err := session.OpenStream()
		if err != nil {
			log.Fatalf("open: %v", err)
		}
		go follow(stream, p, streams)
	}
}

func accept(session *yamux.Session, plans []plan, streams *sync.WaitGroup) {
	for range plans {
		stream, err := session.AcceptStream()
		if err != nil {
			log.Fatalf("accept: %v", err)
		}
		go follow(stream, plans[(stream.StreamID()-1)/2], streams)
	}
}

// follow writes in pieces of random size and half-closes while it reads to the end.
func follow(stream *yamux.Stream, p plan, streams *sync.WaitGroup) {
	defer streams.Done()
	sent, received := sha256.New(), sha256.New()
	var written int64
	var writeErr error
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		time.Sleep(p.delay)
		for written < p.bytes {
			piece := make([]byte, min(p.bytes-written, 1+mathrand.Int64N(200_000)))
			_, _ = rand.Read(piece)
			var n int
			n, writeErr = stream.Write(piece)
			sent.Write(piece[:n])
			written += int64(n)
			if writeErr != nil {
				return
			}
		}
		_ = stream.Close()
	}()
	time.Sleep(p.stopped)
	n, readErr := io.CopyBuffer(received, onlyReader{stream}, make([]byte, 1+mathrand.IntN(100_000)))
	<-writing
	deployed.Report("stream", map[string]any{
		"id":              stream.StreamID(),
		"sent":            written,
		"sent_sha256":     hex.EncodeToString(sent.Sum(nil)),
		"received":        n,
		"received_sha256": hex.EncodeToString(received.Sum(nil)),
		"ended":           readErr == nil,
		"reset":           errors.Is(readErr, yamux.ErrConnectionReset) || errors.Is(writeErr, yamux.ErrConnectionReset),
	})
}

// onlyReader keeps io.CopyBuffer from choosing its own way to copy.
type onlyReader struct{ io.Reader }
