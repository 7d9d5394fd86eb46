// Ends TLS with ECH and passes the plain bytes on, as a CDN does in front of a Worker. A connection is over when both directions
// are, or when one of them broke.
package main

import (
	"crypto/tls"
	"flag"
	"io"
	"log"
	"net"
	"strings"

	"ech-workers.example/interop/deployed"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	var certificates, keys list
	flag.Var(&certificates, "certificate", "CHAIN.pem:KEY.pem (repeat; chosen by server name, the first is the default)")
	flag.Var(&keys, "ech-key", "RFC 9934 file, handed out as a retry configuration too (repeat)")
	alpn := flag.String("alpn", "http/1.1", "protocols that TLS selects from; empty: none")
	listen := flag.String("listen", "127.0.0.1:0", "address")
	to := flag.String("to", "", "ADDRESS:PORT that gets the plain bytes")
	flag.Parse()

	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if *alpn != "" {
		config.NextProtos = strings.Split(*alpn, ",")
	}
	for _, pair := range certificates {
		chain, key, _ := strings.Cut(pair, ":")
		certificate, err := tls.LoadX509KeyPair(chain, key)
		if err != nil {
			log.Fatal(err)
		}
		config.Certificates = append(config.Certificates, certificate)
	}
	for _, path := range keys {
		key, err := deployed.EchKey(path, true)
		if err != nil {
			log.Fatal(err)
		}
		config.EncryptedClientHelloKeys = append(config.EncryptedClientHelloKeys, key)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	deployed.Report("listening", map[string]any{"address": listener.Addr().String()})
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(tls.Server(connection, config), *to)
	}
}

func serve(client *tls.Conn, to string) {
	defer client.Close()
	if err := client.Handshake(); err != nil {
		deployed.Report("complaint", map[string]any{"text": err.Error()})
		return
	}
	state := client.ConnectionState()
	deployed.Report("handshake", map[string]any{"ech": state.ECHAccepted, "server_name": state.ServerName, "alpn": state.NegotiatedProtocol})
	plain, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer plain.Close()
	broken := make(chan struct{}, 2)
	whole := make(chan struct{}, 2)
	pass := func(to, from net.Conn, end func() error) {
		if _, err := io.Copy(to, from); err != nil || end() != nil {
			broken <- struct{}{}
			return
		}
		whole <- struct{}{}
	}
	go pass(plain, client, plain.(*net.TCPConn).CloseWrite)
	go pass(client, plain, client.CloseWrite)
	for range 2 {
		select {
		case <-broken:
			return
		case <-whole:
		}
	}
}
